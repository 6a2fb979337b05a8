// TVM's CUDA code generator, which libtvm.so holds and nothing there calls.
//
// The wheel ships no header of IRModule, PrimFunc or CodeGenCUDA, and none is needed: functions
// come in as the object references that they are, and the generator is called by its symbols, each
// of which `tests/cuda/test_cuda_symbols.py` guards. They are looked up when they are used, so
// that the library loads beside libtvm_runtime.so, too, which has no code generator.

#include <dlfcn.h>
#include <dmlc/json.h>
#include <tvm/runtime/container/array.h>
#include <tvm/runtime/container/string.h>
#include <tvm/runtime/registry.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <sstream>
#include <string>
#include <unordered_map>
#include <vector>

#include "cuda/cuda_module.h"
#include "meta_data.h"

namespace {

using tvm::runtime::Array;
using tvm::runtime::FunctionInfo;
using tvm::runtime::ObjectRef;
using tvm::runtime::String;

// A generous place for an object whose size only libtvm knows; `Finish` is checked to stay in it.
constexpr std::size_t kGeneratorBytes = 64 << 10;
constexpr unsigned char kUntouched = 0xA5;

template <typename F>
F Symbol(const char* name) {
  void* found = dlsym(RTLD_DEFAULT, name);
  ICHECK(found != nullptr) << "libtvm has no " << name
                           << ": this is not the TVM that the CUDA plug-in was written for";
  return reinterpret_cast<F>(found);
}

class Generator {
 public:
  Generator() {
    std::fill(storage_, storage_ + sizeof(storage_), kUntouched);
    Symbol<void (*)(void*)>("_ZN3tvm7codegen11CodeGenCUDAC1Ev")(storage_);
    Symbol<void (*)(void*, bool)>("_ZN3tvm7codegen11CodeGenCUDA4InitEb")(storage_, false);
    for (std::size_t at = sizeof(storage_) - 1024; at < sizeof(storage_); ++at) {
      ICHECK_EQ(storage_[at], kUntouched) << "CodeGenCUDA is larger than its place";
    }
  }

  ~Generator() { Symbol<void (*)(void*)>("_ZN3tvm7codegen11CodeGenCUDAD1Ev")(storage_); }

  Generator(const Generator&) = delete;
  Generator& operator=(const Generator&) = delete;

  void Declare(const ObjectRef& name, const ObjectRef& function) {
    Call("_ZN3tvm7codegen8CodeGenC15DeclareFunctionERKNS_9GlobalVarERKNS_3tir8PrimFuncE", name,
         function);
  }

  void Add(const ObjectRef& name, const ObjectRef& function) {
    Call("_ZN3tvm7codegen8CodeGenC11AddFunctionERKNS_9GlobalVarERKNS_3tir8PrimFuncE", name,
         function);
  }

  std::string Finish() {
    // A std::string comes back through a hidden first argument, as a method of any class does it.
    struct Shape {
      std::string Finish();
    };
    std::string (Shape::*finish)();
    struct {
      void* address;
      std::ptrdiff_t offset;
    } pointer{Symbol<void*>("_ZN3tvm7codegen11CodeGenCUDA6FinishB5cxx11Ev"), 0};
    static_assert(sizeof(pointer) == sizeof(finish), "not the Itanium C++ ABI");
    std::memcpy(&finish, &pointer, sizeof(finish));
    return (reinterpret_cast<Shape*>(storage_)->*finish)();
  }

 private:
  void Call(const char* symbol, const ObjectRef& name, const ObjectRef& function) {
    // GlobalVar and PrimFunc are ObjectRefs with no field of their own.
    Symbol<void (*)(void*, const ObjectRef&, const ObjectRef&)>(symbol)(storage_, name, function);
  }

  alignas(64) unsigned char storage_[kGeneratorBytes];
};

// CUDA C of `functions`, each a PrimFunc that is to be launched on the device; `names` are their
// GlobalVars.
String Source(Array<ObjectRef> names, Array<ObjectRef> functions) {
  ICHECK_EQ(names.size(), functions.size());
  auto generator = std::make_unique<Generator>();
  for (std::size_t i = 0; i < names.size(); ++i) generator->Declare(names[i], functions[i]);
  for (std::size_t i = 0; i < names.size(); ++i) generator->Add(names[i], functions[i]);
  return generator->Finish();
}

// TVM's own module of an image (cubin, fatbin or PTX) and what its kernels are called with:
// `functions` is the JSON of a list of FunctionInfo.
tvm::runtime::Module Create(std::string image, std::string format, std::string functions,
                            std::string source) {
  std::istringstream stream(functions);
  dmlc::JSONReader reader(&stream);
  std::vector<FunctionInfo> list;
  reader.Read(&list);
  std::unordered_map<std::string, FunctionInfo> table;
  for (const FunctionInfo& info : list) table[info.name] = info;
  return tvm::runtime::CUDAModuleCreate(image, format, table, source);
}

}  // namespace

TVM_REGISTER_GLOBAL("mobilenet_tvm.cuda.source").set_body_typed(Source);
TVM_REGISTER_GLOBAL("mobilenet_tvm.cuda.module")
    .set_body([](tvm::runtime::TVMArgs args, tvm::runtime::TVMRetValue* result) {
      *result = Create(args[0].operator std::string(), args[1].operator std::string(),
                       args[2].operator std::string(), args[3].operator std::string());
    });
