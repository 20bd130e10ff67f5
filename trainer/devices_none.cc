// Linked where this program was built without CUDA.
#include "core/error.h"
#include "trainer/devices.h"

namespace bitshard::trainer {
namespace {

absl::Status NoCuda() {
  return core::ConfigError(
      "device: cuda: this program was built without CUDA: build it with `cmake --preset cuda`, or "
      "set device: cpu");
}

class NoDevices : public Devices {
 public:
  absl::Status Usable(int) const override { return NoCuda(); }
  bool MultipliesBFloat16(int) const override { return false; }
  std::string Describe(int) const override { return ""; }
  absl::StatusOr<std::unique_ptr<Replica>> MakeReplica(const ReplicaArgs&) const override {
    return NoCuda();
  }
  absl::StatusOr<DevicePlan> MakePlan(const DevicePlanInput&) const override { return NoCuda(); }
};

}  // namespace

std::unique_ptr<Devices> MakeDevices() { return std::make_unique<NoDevices>(); }

}  // namespace bitshard::trainer
