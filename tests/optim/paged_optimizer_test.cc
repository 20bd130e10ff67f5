// The sharded optimizer with more state than its budget holds: pages go to a file and come back.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/thread_communicator.h"
#include "core/rng.h"
#include "optim/sharded_optimizer.h"

namespace bitshard::optim {
namespace {

// A page of the file tier is at most this (optim/state_pages.cc): 4096 blocks of 8-bit AdamW.
constexpr int64_t kPageBytes = 4096 * 520;

// About 4.5M elements, 9 MB of 8-bit state: five pages, and tensors that cross from one to another.
core::FlatLayout Layout() {
  return *core::FlatLayout::Create(
      {{"a", {1500, 1000}}, {"b", {300}}, {"c", {2000, 1000}}, {"d", {1001, 1001}}});
}

// One rank's optimizer with its parameters and gradients.
class OneRank {
 public:
  explicit OneRank(const std::string& name)
      : layout_(Layout()),
        shards_(layout_, 1, 1 << 20),
        ranks_(comm::ThreadCommunicator::Create(1)),
        parameters_(static_cast<size_t>(layout_.padded_elems()), 0.25f),
        gradients_(parameters_.size()) {
    ShardedOptimizerOptions options;
    options.settings.name = *ParseOptimizerName(name);
    options.settings.weight_decay = 0.1;
    options.paging = {.tier = paging::Tier::kFile,
                      .budget_bytes = 2 * kPageBytes,
                      .directory = ::testing::TempDir()};
    auto made = ShardedOptimizer::Create(layout_, shards_, ranks_[0].get(), options);
    EXPECT_TRUE(made.ok()) << made.status();
    if (made.ok()) optimizer_ = *std::move(made);
  }

  void Step(int64_t step) {
    for (const core::FlatTensor& tensor : layout_.tensors()) {
      for (int64_t e = 0; e < tensor.numel; e += 4) {
        const core::Philox4 random = core::Philox(9, static_cast<uint64_t>(tensor.offset() + e),
                                                  static_cast<uint64_t>(step));
        for (int64_t k = 0; k < std::min<int64_t>(4, tensor.numel - e); ++k) {
          gradients_[static_cast<size_t>(tensor.offset() + e + k)] =
              core::UniformFloat(random.word[k]) - 0.4f;
        }
      }
    }
    const absl::Status status = optimizer_->Step(
        {.parameters = parameters_, .gradients = gradients_, .learning_rate = 1e-2});
    ASSERT_TRUE(status.ok()) << status;
  }

  std::vector<std::byte> State() {
    std::vector<std::byte> state(static_cast<size_t>(StateBytes()));
    const absl::Status status = optimizer_->ExportState({0, layout_.num_blocks()}, state);
    EXPECT_TRUE(status.ok()) << status;
    return state;
  }
  void GoOnFrom(OneRank* other) {
    parameters_ = other->parameters_;
    const std::vector<std::byte> state = other->State();
    const absl::Status status = optimizer_->ImportState({0, layout_.num_blocks()}, state);
    ASSERT_TRUE(status.ok()) << status;
    optimizer_->set_step(other->optimizer_->step());
  }

  int64_t StateBytes() const {
    int64_t bytes = 0;
    for (int64_t b = 0; b < layout_.num_blocks(); ++b) bytes += optimizer_->BlockStateBytes(b);
    return bytes;
  }
  const ShardedOptimizer& optimizer() const { return *optimizer_; }
  const std::vector<float>& parameters() const { return parameters_; }

 private:
  core::FlatLayout layout_;
  comm::ShardMap shards_;
  std::vector<std::unique_ptr<comm::Communicator>> ranks_;
  std::vector<float> parameters_, gradients_;
  std::unique_ptr<ShardedOptimizer> optimizer_;
};

void ExpectSame(OneRank* a, OneRank* b, const std::string& what) {
  EXPECT_EQ(0, std::memcmp(a->parameters().data(), b->parameters().data(),
                           a->parameters().size() * sizeof(float)))
      << what;
  EXPECT_TRUE(a->State() == b->State()) << what;
}

TEST(PagedOptimizer, PagesOutOfAFileWithTheSameBits) {
  for (const char* name : {"adamw_8bit", "lion_8bit"}) {
    OneRank unpaged(name), paged(std::string("paged_") + name);
    for (int64_t step = 1; step <= 3; ++step) {
      unpaged.Step(step);
      paged.Step(step);
    }
    const paging::PagingCounters counters = paged.optimizer().paging_counters();
    // AdamW's state is twice the budget: what did not stay resident was read again in every step.
    if (paged.StateBytes() > 3 * kPageBytes) {
      EXPECT_GT(counters.bytes_read, 2 * kPageBytes) << name;
      EXPECT_GT(counters.bytes_written, 2 * kPageBytes) << name;
    }
    EXPECT_EQ(unpaged.optimizer().paging_counters().bytes_read, 0) << name;
    ExpectSame(&unpaged, &paged, name);
  }
}

// The pre-pass of LAMB reads everything once more, and writes nothing.
TEST(PagedOptimizer, WritesEachPageOnceAStep) {
  constexpr int64_t kSteps = 3;
  OneRank adamw("paged_adamw_8bit"), lamb("paged_lamb_8bit");
  for (int64_t step = 1; step <= kSteps; ++step) {
    adamw.Step(step);
    lamb.Step(step);
  }
  const paging::PagingCounters once = adamw.optimizer().paging_counters();
  const paging::PagingCounters twice = lamb.optimizer().paging_counters();
  const int64_t resident = 2 * kPageBytes;
  EXPECT_GT(twice.bytes_read, once.bytes_read + kSteps * (lamb.StateBytes() - 2 * resident));
  EXPECT_LE(twice.bytes_written, once.bytes_written + resident);
}

TEST(PagedOptimizer, ExportsAndImportsAcrossPages) {
  OneRank whole("adamw_8bit"), half("paged_adamw_8bit");
  for (int64_t step = 1; step <= 2; ++step) {
    whole.Step(step);
    half.Step(step);
  }
  ASSERT_GT(half.StateBytes(), 4 * kPageBytes);
  ExpectSame(&whole, &half, "exported from pages");
  OneRank resumed("paged_adamw_8bit"), unpaged("adamw_8bit");
  resumed.GoOnFrom(&half);
  unpaged.GoOnFrom(&half);
  EXPECT_GT(resumed.optimizer().paging_counters().bytes_written, 0);
  whole.Step(3);
  resumed.Step(3);
  unpaged.Step(3);
  EXPECT_GT(resumed.optimizer().paging_counters().bytes_read, 0);
  ExpectSame(&whole, &resumed, "imported into pages");
  ExpectSame(&whole, &unpaged, "imported into memory");
}

}  // namespace
}  // namespace bitshard::optim
