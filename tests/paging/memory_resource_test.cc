#include "paging/memory_resource.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace bitshard::paging {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// One suite over every resource: a resource is added by adding it to the type list.
struct Host {
  HostResource resource;
};
struct Limited {
  HostResource host;
  LimitingAdaptor<HostResource> resource{&host, {.limit_bytes = int64_t{1} << 30}};
};
struct LimitedTwice {
  HostResource host;
  LimitingAdaptor<HostResource> outer{&host, {.limit_bytes = int64_t{1} << 30}};
  LimitingAdaptor<LimitingAdaptor<HostResource>> resource{&outer,
                                                          {.limit_bytes = int64_t{1} << 29}};
};

template <class T>
class MemoryResourceConformance : public testing::Test {
 protected:
  T holder_;
};
using Resources = testing::Types<Host, Limited, LimitedTwice>;
TYPED_TEST_SUITE(MemoryResourceConformance, Resources);

TYPED_TEST(MemoryResourceConformance, GivesAlignedZerosOfTheSizeAskedFor) {
  for (const int64_t bytes : {int64_t{1}, int64_t{63}, int64_t{4096}, int64_t{100001}}) {
    const auto memory = this->holder_.resource.Allocate(bytes, "test");
    ASSERT_TRUE(memory.ok()) << memory.status();
    EXPECT_EQ(static_cast<int64_t>(memory->size()), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory->data()) % 64, 0u);
    EXPECT_TRUE(
        std::all_of(memory->begin(), memory->end(), [](std::byte b) { return b == std::byte{0}; }));
    std::fill(memory->begin(), memory->end(), std::byte{0xFF});
    this->holder_.resource.Deallocate(*memory);
  }
}

TEST(LimitingAdaptor, RefusesWhatPassesTheLimitAndCountsWhatItHolds) {
  HostResource host;
  LimitingAdaptor<HostResource> limited(&host, {.limit_bytes = 1000});
  {
    auto first = Allocation<LimitingAdaptor<HostResource>>::Create(&limited, 600, "first");
    ASSERT_TRUE(first.ok());
    EXPECT_EQ(limited.allocated_bytes(), 600);
    const absl::Status status =
        Allocation<LimitingAdaptor<HostResource>>::Create(&limited, 401, "second").status();
    EXPECT_EQ(core::KindOf(status), core::ErrorKind::kMemory);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("second: 401"), HasSubstr("1000"), HasSubstr("600")));
    EXPECT_EQ(limited.allocated_bytes(), 600);
    Allocation<LimitingAdaptor<HostResource>> moved = *std::move(first);
    EXPECT_TRUE((Allocation<LimitingAdaptor<HostResource>>::Create(&limited, 400, "third").ok()));
    EXPECT_EQ(limited.allocated_bytes(), 600);
  }
  EXPECT_EQ(limited.allocated_bytes(), 0);
}

TEST(LimitingAdaptor, CountsNothingWhenTheUpstreamRefuses) {
  HostResource host;
  LimitingAdaptor<HostResource> limited(&host, {.limit_bytes = int64_t{1} << 62});
  EXPECT_EQ(core::KindOf(limited.Allocate(int64_t{1} << 60, "too much").status()),
            core::ErrorKind::kMemory);
  EXPECT_EQ(limited.allocated_bytes(), 0);
}

}  // namespace
}  // namespace bitshard::paging
