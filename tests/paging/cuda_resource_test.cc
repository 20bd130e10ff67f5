#include "paging/cuda_resource.h"

#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "core/cuda_stream.h"
#include "core/error.h"

namespace bitshard::paging {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

template <class R>
class CudaResourceConformance : public testing::Test {
 protected:
  R resource_;
};
using Resources = testing::Types<DeviceResource, ManagedResource, PinnedResource>;
TYPED_TEST_SUITE(CudaResourceConformance, Resources);

TYPED_TEST(CudaResourceConformance, GivesAlignedMemoryThatTheDeviceCanUse) {
  const auto stream = core::Stream::Create();
  ASSERT_TRUE(stream.ok()) << stream.status();
  for (const int64_t bytes : {int64_t{1}, int64_t{63}, int64_t{4096}, int64_t{100001}}) {
    const auto memory = Allocation<TypeParam>::Create(&this->resource_, bytes, "test");
    ASSERT_TRUE(memory.ok()) << memory.status();
    ASSERT_EQ(static_cast<int64_t>(memory->memory().size()), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory->memory().data()) % 64, 0u);
    const std::vector<unsigned char> written(static_cast<size_t>(bytes), 0x5A);
    std::vector<unsigned char> read(static_cast<size_t>(bytes));
    ASSERT_EQ(cudaMemcpyAsync(memory->memory().data(), written.data(), written.size(),
                              cudaMemcpyDefault, stream->get()),
              cudaSuccess);
    ASSERT_EQ(cudaMemcpyAsync(read.data(), memory->memory().data(), read.size(), cudaMemcpyDefault,
                              stream->get()),
              cudaSuccess);
    ASSERT_TRUE(stream->Synchronize().ok());
    EXPECT_EQ(read, written);
  }
}

TEST(CudaResource, SaysWhatIsMissingAndWhatIsFree) {
  DeviceResource device;
  const absl::Status status = device.Allocate(int64_t{1} << 50, "resident pages").status();
  EXPECT_EQ(core::KindOf(status), core::ErrorKind::kMemory);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("resident pages: want 1125899906842624 bytes"),
                    HasSubstr("bytes free of"), HasSubstr("paging.budget")));
  EXPECT_EQ(cudaGetLastError(), cudaSuccess) << "the next launch would report it again";

  PinnedResource pinned;
  const absl::Status locked = pinned.Allocate(int64_t{1} << 50, "pages").status();
  EXPECT_EQ(core::KindOf(locked), core::ErrorKind::kMemory);
  EXPECT_THAT(std::string(locked.message()),
              AllOf(HasSubstr("pages: want 1125899906842624 bytes"), HasSubstr("available: "),
                    HasSubstr("ulimit -l")));
}

TEST(CudaResource, WorksInsideALimit) {
  DeviceResource device;
  LimitingAdaptor<DeviceResource> limited(&device, {.limit_bytes = 1000});
  EXPECT_TRUE((Allocation<LimitingAdaptor<DeviceResource>>::Create(&limited, 1000, "fits").ok()));
  EXPECT_EQ(core::KindOf(limited.Allocate(1001, "too much").status()), core::ErrorKind::kMemory);
}

}  // namespace
}  // namespace bitshard::paging
