#include "core/aligned_buffer.h"

#include <cstdint>
#include <numeric>

#include "core/error.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace bitshard::core {
namespace {

TEST(AlignedBuffer, StartsAtAMultipleOf64AndHoldsItsBytes) {
  for (const int64_t bytes : {1, 63, 64, 65, 4097}) {
    auto buffer = AlignedBuffer::Create(bytes, "test");
    ASSERT_TRUE(buffer.ok());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->bytes().data()) % 64, 0u);
    EXPECT_EQ(buffer->bytes().size(), static_cast<size_t>(bytes));
    EXPECT_EQ(buffer->as<float>().size(), static_cast<size_t>(bytes) / 4);
    std::ranges::fill(buffer->bytes(),
                      std::byte{1});  // AddressSanitizer sees a write beyond the end.
  }
}

TEST(AlignedBuffer, OfNoBytesIsEmpty) {
  auto buffer = AlignedBuffer::Create(0, "test");
  ASSERT_TRUE(buffer.ok());
  EXPECT_TRUE(buffer->bytes().empty());
}

TEST(AlignedBuffer, KeepsItsAddressWhenMoved) {
  AlignedBuffer buffer = *AlignedBuffer::Create(100, "test");
  const std::byte* address = buffer.bytes().data();
  const AlignedBuffer moved = std::move(buffer);
  EXPECT_EQ(moved.bytes().data(), address);
}

#ifndef __SANITIZE_ADDRESS__  // Its allocator aborts instead of returning null.
TEST(AlignedBuffer, NamesPurposeAndSizeWhenMemoryIsRefused) {
  const auto buffer = AlignedBuffer::Create(int64_t{1} << 60, "optimizer state");
  ASSERT_FALSE(buffer.ok());
  EXPECT_EQ(ExitCode(buffer.status()), 4);
  EXPECT_THAT(std::string(buffer.status().message()),
              testing::AllOf(testing::HasSubstr("optimizer state"),
                             testing::HasSubstr("1152921504606846976")));
}
#endif

}  // namespace
}  // namespace bitshard::core
