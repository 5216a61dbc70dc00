// What a CPU build of torch lacks to have tensors on a GPU: who is asked for devices and streams. Both come from the stand-in
// for the driver (driver.c). It must be loaded before torch, which looks for hooks once.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

extern "C" int cudaGetDeviceCount(int*);
extern "C" int cudaGetDevice(int*);
extern "C" int cudaSetDevice(int);
extern "C" int cudaStreamCreateWithFlags(void**, unsigned);

namespace {

constexpr int kMostGpus = 8;
thread_local c10::StreamId streams[kMostGpus];  // the current one of each device

c10::DeviceIndex count() {
  int value = 0;
  cudaGetDeviceCount(&value);
  return static_cast<c10::DeviceIndex>(value);
}

c10::DeviceIndex current() {
  int value = 0;
  cudaGetDevice(&value);
  return static_cast<c10::DeviceIndex>(value);
}

c10::DeviceIndex exchange(c10::DeviceIndex index) {
  const auto before = current();
  if (index >= 0) TORCH_CHECK(cudaSetDevice(index) == 0, "no GPU ", static_cast<int>(index));
  return before;
}

}  // namespace

namespace c10::impl {

struct Guard final : DeviceGuardImplInterface {
  Guard() = default;
  explicit Guard(DeviceType /*type*/) {}
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device device) const override { return Device(type(), exchange(device.index())); }
  Device getDevice() const override { return Device(type(), current()); }
  void setDevice(Device device) const override { exchange(device.index()); }
  void uncheckedSetDevice(Device device) const noexcept override { cudaSetDevice(device.index()); }
  DeviceIndex deviceCount() const noexcept override { return count(); }

  Device whole(Device device) const { return device.has_index() ? device : getDevice(); }
  Stream getStream(Device given) const override {
    const Device device = whole(given);
    return Stream(Stream::UNSAFE, device, streams[device.index()]);
  }
  Stream getDefaultStream(Device device) const override { return Stream(Stream::DEFAULT, whole(device)); }
  Stream getNewStream(Device device, int /*priority*/) const override {
    void* made = nullptr;
    TORCH_CHECK(cudaStreamCreateWithFlags(&made, 1) == 0, "no more streams");
    return Stream(Stream::UNSAFE, whole(device), reinterpret_cast<StreamId>(made));
  }
  Stream exchangeStream(Stream stream) const override {
    const Stream before = getStream(stream.device());
    streams[stream.device_index()] = stream.id();
    return before;
  }
  void* getStreamNativeHandle(const Stream stream) const override { return reinterpret_cast<void*>(stream.id()); }

  // nothing ever waits
  void record(void** /*event*/, const Stream& /*stream*/, const DeviceIndex /*index*/, const EventFlag /*flag*/) const override {}
  void block(void* /*event*/, const Stream& /*stream*/) const override {}
  bool queryEvent(void* /*event*/) const override { return true; }
  void synchronizeDevice(const DeviceIndex /*index*/) const override {}
  void synchronizeStream(const Stream& /*stream*/) const override {}
};

C10_REGISTER_GUARD_IMPL(CUDA, Guard)

}  // namespace c10::impl

namespace at {

struct CUDAHooks final : CUDAHooksInterface {  // torch asks for a class of this name
  explicit CUDAHooks(CUDAHooksArgs /*arguments*/) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex /*index*/) const override { return true; }
  DeviceIndex deviceCount() const override { return count(); }
  DeviceIndex current_device() const override { return current(); }
  DeviceIndex getCurrentDevice() const override { return current(); }
  void setCurrentDevice(DeviceIndex index) const override { exchange(index); }
  DeviceIndex exchangeDevice(DeviceIndex index) const override { return exchange(index); }
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override { return exchange(index); }
};

REGISTER_CUDA_HOOKS(CUDAHooks)

}  // namespace at
