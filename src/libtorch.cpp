// What libtorch has for C++ alone, for libtorch.rs.

#include <cstdio>
#include <exception>
#include <optional>
#include <string_view>

#include <ATen/Context.h>
#include <ATen/Version.h>
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/InferenceMode.h>
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

// What the calling thread computes until the end is prepared for no gradient: neither recorded nor looked at on the way to
// each kernel. An end for each begin, the last one first.
extern "C" void *sidelens_inference_begin() noexcept { return new c10::InferenceMode(); }

extern "C" void sidelens_inference_end(void *mode) noexcept { delete static_cast<c10::InferenceMode *>(mode); }

// CUDA by what libtorch has for any device: CUDA's own functions are in libraries that this is not linked with.

// Which kernels are chosen, in the whole process. cuDNN's attention, which Hopper would get, builds a plan for every number
// of texts and of tokens, tens of milliseconds each, when it meets them, and keeps it for good; and fp32 is meant literally,
// as everywhere else. Says nothing to a libtorch without CUDA.
extern "C" bool sidelens_cuda_choose_kernels(char *message, size_t room) noexcept {
  const auto operation = [] {
    at::globalContext().setSDPUseCuDNN(false);
    at::globalContext().setAllowTF32CuDNN(false);
    return true;
  };
  return attempt(operation, message, room);
}

// Writes what libtorch was built with, its CUDA half included where that is open, to `text`, cut off behind `room` bytes.
extern "C" bool sidelens_show_config(char *text, size_t room, char *message, size_t message_room) noexcept {
  const auto operation = [=] {
    std::snprintf(text, room, "%s", at::show_config().c_str());
    return true;
  };
  return attempt(operation, message, message_room);
}

// Makes `index` the calling thread's CUDA device, and gives it a stream of its own there, behind all that is under way.
extern "C" bool sidelens_cuda_enter(int8_t index, char *message, size_t room) noexcept {
  const auto operation = [=] {
    const c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
    const c10::Device device(c10::DeviceType::CUDA, index);
    // Else what follows opens device 0 as well, for good and for some hundred megabytes.
    cuda.setDevice(device);
    cuda.synchronizeDevice(index);
    cuda.exchangeStream(cuda.getStreamFromGlobalPool(device));
    return true;
  };
  return attempt(operation, message, room);
}

// Waits for all that is under way on the CUDA device `index`, which fails once the device is lost to this process.
extern "C" bool sidelens_cuda_synchronize(int8_t index, char *message, size_t room) noexcept {
  const auto operation = [=] {
    c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).synchronizeDevice(index);
    return true;
  };
  return attempt(operation, message, room);
}

// Gives memory that libtorch keeps for later back to CUDA.
extern "C" bool sidelens_cuda_empty_cache(char *message, size_t room) noexcept {
  const auto operation = [] {
    c10::getDeviceAllocator(c10::DeviceType::CUDA)->emptyCache();
    return true;
  };
  return attempt(operation, message, room);
}
