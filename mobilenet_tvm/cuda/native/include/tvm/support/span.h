// A run of elements that another owns. tvm/runtime/metadata.h names it and the wheel lacks it;
// nothing here uses one, so declared is enough of it that the header compiles.
#ifndef TVM_SUPPORT_SPAN_H_
#define TVM_SUPPORT_SPAN_H_

#include <cstddef>
#include <iterator>
#include <vector>

namespace tvm {
namespace support {

// Elements of type `T`, handed out as `W`.
template <typename T, typename W>
class Span {
 public:
  class iterator {
   public:
    using iterator_category = std::input_iterator_tag;
    using value_type = W;
    using difference_type = std::ptrdiff_t;
    using pointer = const W*;
    using reference = W;

    explicit iterator(T* at) : at_(at) {}
    W operator*() const { return W(*at_); }
    iterator& operator++() {
      ++at_;
      return *this;
    }
    bool operator==(const iterator& other) const { return at_ == other.at_; }
    bool operator!=(const iterator& other) const { return at_ != other.at_; }

   private:
    T* at_;
  };

  Span(T* begin, T* end) : begin_(begin), end_(end) {}

  iterator begin() const { return iterator(begin_); }
  iterator end() const { return iterator(end_); }
  std::size_t size() const { return end_ - begin_; }
  W operator[](std::size_t index) const { return W(begin_[index]); }
  operator std::vector<W>() const { return std::vector<W>(begin(), end()); }

 private:
  T* begin_;
  T* end_;
};

}  // namespace support
}  // namespace tvm

#endif  // TVM_SUPPORT_SPAN_H_
