// The driver's entry points that TVM's runtime calls, and how it is told what GPU it is.

#include <cuda.h>

#include <dlfcn.h>
#include <dmlc/json.h>
#include <elf.h>
#include <tvm/runtime/registry.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "errors.h"
#include "hidden.h"
#include "image.h"
#include "launch.h"
#include "memory.h"
#include "stream.h"

using mobilenet_tvm_emulated::Error;
using mobilenet_tvm_emulated::Function;
using mobilenet_tvm_emulated::Image;
using mobilenet_tvm_emulated::Index;
using mobilenet_tvm_emulated::Limits;
using mobilenet_tvm_emulated::TheLimits;

struct CUfunc_st {
  Function function;
};

struct CUmod_st {
  const Image* image = nullptr;
  void* library = nullptr;
  std::map<std::string, CUfunc_st> functions;
};

namespace {

thread_local int t_code = 0;
thread_local std::string t_words;

void Keep(int code, std::string words) {
  t_code = code;
  t_words = std::move(words);
}

// The sections of a cubin, which is an ELF file.
struct Section {
  std::string name;
  Elf64_Shdr header;
};

std::vector<Section> Sections(const char* image) {
  Elf64_Ehdr head;
  std::memcpy(&head, image, sizeof(head));
  std::vector<Section> sections(head.e_shnum);
  for (std::size_t i = 0; i < sections.size(); ++i) {
    std::memcpy(&sections[i].header, image + head.e_shoff + i * head.e_shentsize,
                sizeof(Elf64_Shdr));
  }
  if (head.e_shstrndx >= sections.size()) return {};
  const char* names = image + sections[head.e_shstrndx].header.sh_offset;
  for (Section& section : sections) section.name = names + section.header.sh_name;
  return sections;
}

bool IsElf(const char* image) { return std::strncmp(image, ELFMAG, SELFMAG) == 0; }

// A fatbin: its head, then entries, each with a head of its own.
struct FatbinHead {
  std::uint32_t magic;
  std::uint16_t version, head_bytes;
  std::uint64_t bytes;  // of all entries
};
struct FatbinEntry {
  std::uint16_t kind, version;
  std::uint32_t head_bytes;
  std::uint64_t bytes;
};

bool IsFatbin(const char* image) {
  // Text may be shorter than the head.
  return std::strncmp(image, "\x50\xED\x55\xBA", 4) == 0;
}

// How long an image is, for the driver is not told: an ELF file, a fatbin or text (PTX).
std::size_t Length(const char* image) {
  if (IsElf(image)) {
    Elf64_Ehdr head;
    std::memcpy(&head, image, sizeof(head));
    std::size_t end = std::max<std::size_t>(head.e_shoff + head.e_shnum * head.e_shentsize,
                                            head.e_phoff + head.e_phnum * head.e_phentsize);
    for (const Section& section : Sections(image)) {
      if (section.header.sh_type == SHT_NOBITS) continue;
      end = std::max<std::size_t>(end, section.header.sh_offset + section.header.sh_size);
    }
    return end;
  }
  if (IsFatbin(image)) {
    FatbinHead head;
    std::memcpy(&head, image, sizeof(head));
    return head.head_bytes + head.bytes;
  }
  return std::strlen(image);
}

// The machine code in an image, null where there is none, or only a compressed one.
const char* Cubin(const char* image) {
  if (IsElf(image)) return image;
  if (!IsFatbin(image)) return nullptr;
  const char* const end = image + Length(image);
  FatbinHead head;
  std::memcpy(&head, image, sizeof(head));
  for (const char* at = image + head.head_bytes;
       at + sizeof(FatbinEntry) < end;) {
    FatbinEntry entry;
    std::memcpy(&entry, at, sizeof(entry));
    const char* const payload = at + entry.head_bytes;
    if (payload + sizeof(Elf64_Ehdr) < end && IsElf(payload)) return payload;
    at = payload + entry.bytes;
  }
  return nullptr;
}

// Registers of each kernel's threads: the upper byte of a field of its code's section that ELF has
// no use for.
std::map<std::string, unsigned> Registers(const char* image) {
  std::map<std::string, unsigned> registers;
  const char* cubin = Cubin(image);
  if (cubin == nullptr) return registers;
  const std::string prefix = ".text.";
  for (const Section& section : Sections(cubin)) {
    if (section.name.compare(0, prefix.size(), prefix) != 0) continue;
    registers[section.name.substr(prefix.size())] = section.header.sh_info >> 24;
  }
  return registers;
}

}  // namespace

namespace mobilenet_tvm_emulated {

cudaError_t Error(cudaError_t code, std::string words) {
  Keep(code, std::move(words));
  return code;
}

CUresult Error(CUresult code, std::string words) {
  Keep(code, std::move(words));
  return code;
}

const char* Words(int code) {
  if (code == t_code && code != 0) return t_words.c_str();
  return code == 0 ? "no error" : "an error of the CUDA emulator";
}

}  // namespace mobilenet_tvm_emulated

CUresult CUDAAPI cuGetErrorName(CUresult error, const char** text) {
  *text = mobilenet_tvm_emulated::Words(error);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGetName(char* name, int length, CUdevice) {
  const std::string text = "CUDA emulator (" + TheLimits().arch + ")";
  std::strncpy(name, text.c_str(), length - 1);
  name[length - 1] = 0;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuModuleLoadData(CUmodule* module, const void* data) {
  const char* image = static_cast<const char*>(data);
  const auto* find = tvm::runtime::Registry::Get("mobilenet_tvm.cuda.emulated.image");
  if (find == nullptr) {
    return Error(CUDA_ERROR_NOT_INITIALIZED,
                 "nobody registered mobilenet_tvm.cuda.emulated.image in this process "
                 "(mobilenet_tvm.cuda.activate() does)");
  }
  TVMByteArray bytes{image, Length(image)};
  const std::string path = (*find)(bytes);
  auto made = std::make_unique<CUmod_st>();
  made->library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  void* entry = made->library == nullptr
                    ? nullptr
                    : dlsym(made->library, mobilenet_tvm_emulated::kImageSymbol);
  if (entry == nullptr) return Error(CUDA_ERROR_INVALID_IMAGE, path + ": " + dlerror());
  made->image = reinterpret_cast<mobilenet_tvm_emulated::ImageFunction>(entry)();
  const std::map<std::string, unsigned> registers = Registers(image);
  for (unsigned i = 0; i < made->image->kernel_count; ++i) {
    const auto& kernel = made->image->kernels[i];
    auto found = registers.find(kernel.name);
    made->functions[kernel.name].function = {
        made->image, &kernel, found == registers.end() ? 0 : found->second, 0};
  }
  *module = made.release();
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuModuleUnload(CUmodule module) {
  dlclose(module->library);
  delete module;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  auto found = module->functions.find(name);
  if (found == module->functions.end()) {
    return Error(CUDA_ERROR_NOT_FOUND, std::string("the image has no kernel ") + name);
  }
  *function = &found->second;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuModuleGetGlobal(CUdeviceptr*, std::size_t* bytes, CUmodule, const char* name) {
  *bytes = sizeof(unsigned);  // TVM looks at it before it looks at the error
  return Error(CUDA_ERROR_NOT_SUPPORTED,
               std::string("the emulator has no variables of the device (") + name +
                   "): its blocks run one after the other and cannot wait for each other");
}

CUresult CUDAAPI cuMemsetD32(CUdeviceptr pointer, unsigned value, std::size_t count) {
  if (!mobilenet_tvm_emulated::Holds(reinterpret_cast<void*>(pointer), count * sizeof(value))) {
    return Error(CUDA_ERROR_INVALID_VALUE, "memset outside of a buffer");
  }
  std::fill_n(reinterpret_cast<unsigned*>(pointer), count, value);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute,
                                    int value) {
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
    return Error(CUDA_ERROR_NOT_SUPPORTED, "the emulator does not know function attribute " +
                                               std::to_string(static_cast<int>(attribute)));
  }
  std::size_t fixed = 0;
  const auto& kernel = *function->function.kernel;
  for (unsigned i = 0; i < kernel.shared_count; ++i) fixed += kernel.shared[i].bytes;
  if (value < 0 || fixed + value > TheLimits().shared_per_block_optin) {
    return Error(CUDA_ERROR_INVALID_VALUE,
                 std::string("kernel ") + kernel.name + " asks for " + std::to_string(value) +
                     " bytes of shared memory, " + TheLimits().arch + " has at most " +
                     std::to_string(TheLimits().shared_per_block_optin));
  }
  function->function.dynamic_limit = value;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y,
                                unsigned grid_z, unsigned block_x, unsigned block_y,
                                unsigned block_z, unsigned shared_bytes, CUstream stream,
                                void** parameters, void**) {
  const Function launched = function->function;
  const Index grid{grid_x, grid_y, grid_z}, block{block_x, block_y, block_z};
  auto launch = [=](void** arguments) {
    auto outcome = mobilenet_tvm_emulated::Launch(launched, grid, block, shared_bytes, arguments);
    return outcome.code == CUDA_SUCCESS ? CUDA_SUCCESS : Error(outcome.code, outcome.message);
  };
  if (stream == nullptr || stream->recording == nullptr) return launch(parameters);
  // The caller's arguments are gone when the graph is launched.
  const auto& kernel = *launched.kernel;
  std::vector<std::vector<unsigned char>> values;
  for (unsigned i = 0; i < kernel.parameters; ++i) {
    const auto* value = static_cast<const unsigned char*>(parameters[i]);
    values.emplace_back(value, value + kernel.parameter_bytes[i]);
  }
  stream->recording->nodes.push_back([launch, values]() mutable {
    std::vector<void*> arguments;
    for (auto& value : values) arguments.push_back(value.data());
    // The runtime's numbers of these errors are the driver's.
    return static_cast<cudaError_t>(launch(arguments.data()));
  });
  return CUDA_SUCCESS;
}

// Which GPU this is: its name, and its limits as the JSON of an object of integers.
TVM_REGISTER_GLOBAL("mobilenet_tvm.cuda.emulated.device")
    .set_body_typed([](std::string arch, std::string json) {
      std::istringstream stream(json);
      dmlc::JSONReader reader(&stream);
      std::map<std::string, std::size_t> given;
      reader.Read(&given);
      Limits limits;
      limits.arch = arch;
      limits.major = given.at("major");
      limits.minor = given.at("minor");
      limits.threads_per_block = given.at("threads_per_block");
      limits.threads_per_multiprocessor = given.at("threads_per_multiprocessor");
      limits.registers_per_block = given.at("registers_per_block");
      limits.shared_per_block = given.at("shared_per_block");
      limits.shared_per_block_optin = given.at("shared_per_block_optin");
      limits.shared_per_multiprocessor = given.at("shared_per_multiprocessor");
      limits.multiprocessors = given.at("multiprocessors");
      limits.l2_bytes = given.at("l2_bytes");
      limits.clock_khz = given.at("clock_khz");
      limits.memory_bytes =
          static_cast<std::size_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
      TheLimits() = limits;
    });

// "forward" or "reverse": the order in which blocks, and the threads of a block, run from now on.
TVM_REGISTER_GLOBAL("mobilenet_tvm.cuda.emulated.order").set_body_typed([](std::string order) {
  ICHECK(order == "forward" || order == "reverse") << "no order is called " << order;
  mobilenet_tvm_emulated::SetReverse(order == "reverse");
});

HIDDEN(cuGetErrorName);
HIDDEN(cuDeviceGetName);
HIDDEN(cuModuleLoadData);
HIDDEN(cuModuleUnload);
HIDDEN(cuModuleGetFunction);
HIDDEN(cuModuleGetGlobal);
HIDDEN(cuMemsetD32);
HIDDEN(cuFuncSetAttribute);
HIDDEN(cuLaunchKernel);
