// What libtorch has for C++ alone, for libtorch.rs.

#include <cstdio>
#include <exception>
#include <optional>
#include <string_view>

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

namespace {

using Pack = at::Tensor(const at::Tensor &, std::optional<int64_t>);
using Multiply = at::Tensor(const at::Tensor &, const at::Tensor &, const std::optional<at::Tensor> &, std::string_view,
                            c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>);

// Throws where this libtorch has no such operator.
template <typename Signature> auto find(const char *name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// What `operation` gives, or nothing (null, false), and then why in `message`: an exception must not reach Rust.
template <typename Operation> auto attempt(const Operation &operation, char *message, size_t room) noexcept {
  try {
    return operation();
  } catch (const c10::Error &error) {
    std::snprintf(message, room, "%s", error.what_without_backtrace());
  } catch (const std::exception &error) {
    std::snprintf(message, room, "%s", error.what());
  } catch (...) {
    std::snprintf(message, room, "an exception of no known type");
  }
  return decltype(operation())();
}

} // namespace

// Matrices in oneDNN's order. The operators over them are in none of the lists that `tch` is made from; the dispatcher finds
// them by name.

// `matrix` [outputs, inputs] for products of any number of rows.
extern "C" at::Tensor *sidelens_onednn_pack(const at::Tensor *matrix, char *message, size_t room) noexcept {
  const auto operation = [=] {
    static const auto pack = find<Pack>("mkldnn::_reorder_linear_weight");
    return new at::Tensor(pack.call(*matrix, std::nullopt));
  };
  return attempt(operation, message, room);
}

// `x` [.., inputs] times the transposed `packed`, and `bias` [outputs], which may be null.
extern "C" at::Tensor *sidelens_onednn_multiply(const at::Tensor *x, const at::Tensor *packed, const at::Tensor *bias,
                                                char *message, size_t room) noexcept {
  const auto operation = [=] {
    static const auto multiply = find<Multiply>("mkldnn::_linear_pointwise");
    const auto offset = bias ? std::optional(*bias) : std::nullopt;
    return new at::Tensor(multiply.call(*x, *packed, offset, "none", c10::List<std::optional<at::Scalar>>(), ""));
  };
  return attempt(operation, message, room);
}

// Gives the calling thread a stream of its own on the CUDA device `index`, behind all that is under way there. By the
// guards that libtorch has for any device: CUDA's own functions are in libraries that this is not linked with.
extern "C" bool sidelens_cuda_own_stream(int8_t index, char *message, size_t room) noexcept {
  const auto operation = [=] {
    const c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
    cuda.synchronizeDevice(index);
    cuda.exchangeStream(cuda.getStreamFromGlobalPool(c10::Device(c10::DeviceType::CUDA, index)));
    return true;
  };
  return attempt(operation, message, room);
}
