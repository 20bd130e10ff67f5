// The sums that a GradientReducer must give, and a check of them on any communicator.
#ifndef BITSHARD_TESTS_COMM_REDUCER_REFERENCE_H_
#define BITSHARD_TESTS_COMM_REDUCER_REFERENCE_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "comm/gradient_reducer.h"
#include "core/check.h"
#include "core/rng.h"

namespace bitshard::comm {

inline constexpr int64_t kBucketBytes = 4096;

// Odd sizes: padding, tensors of many blocks, one bucket of a single block (empty runs at three
// ranks and more).
inline core::FlatLayout TestLayout() {
  auto layout = core::FlatLayout::Create({{.name = "a", .shape = {100}},
                                          {.name = "b", .shape = {33, 50}},
                                          {.name = "c", .shape = {700}},
                                          {.name = "d", .shape = {5, 5, 5}},
                                          {.name = "e", .shape = {3000}},
                                          {.name = "f", .shape = {1}}});
  BITSHARD_CHECK(layout.ok()) << layout.status().ToString();
  return *std::move(layout);
}

// Magnitudes over 2^+-20, so that any other order of additions gives other bits.
inline float Gradient(int64_t step, int64_t micro, int64_t element) {
  const core::Philox4 random =
      core::Philox(static_cast<uint64_t>(step * 100 + micro), static_cast<uint64_t>(element), 7);
  return std::ldexp(core::UniformFloat(random.word[0]) - 0.5f,
                    static_cast<int>(random.word[1] % 41) - 20);
}

// The reference: the tree's definition as a recursion over one element.
inline float TreeSum(int64_t step, int64_t element, int64_t begin, int64_t end) {
  if (end - begin == 1) return Gradient(step, begin, element);
  int64_t half = 1;
  while (half * 2 < end - begin) half *= 2;
  return TreeSum(step, element, begin, begin + half) + TreeSum(step, element, begin + half, end);
}

inline std::vector<float> ReferenceSum(const core::FlatLayout& layout, int64_t step,
                                       int64_t micro_batches) {
  std::vector<float> sum(static_cast<size_t>(layout.padded_elems()), 0.0f);
  for (const core::FlatTensor& tensor : layout.tensors()) {
    for (int64_t i = 0; i < tensor.numel; ++i) {
      sum[static_cast<size_t>(tensor.offset() + i)] =
          TreeSum(step, tensor.offset() + i, 0, micro_batches);
    }
  }
  return sum;
}

inline void WriteTensor(const core::FlatLayout& layout, int64_t tensor, int64_t step, int64_t micro,
                        std::span<float> leaf) {
  const int64_t offset = layout.tensor(tensor).offset();
  for (int64_t i = 0; i < layout.tensor(tensor).numel; ++i) {
    leaf[static_cast<size_t>(offset + i)] = Gradient(step, micro, offset + i);
  }
}

// Tensors in an order that differs by rank and micro-batch.
inline std::vector<int64_t> ReadyOrder(int64_t num_tensors, int64_t seed) {
  std::vector<int64_t> order(static_cast<size_t>(num_tensors));
  std::iota(order.begin(), order.end(), 0);
  std::rotate(order.begin(), order.begin() + seed % num_tensors, order.end());
  return order;
}

inline void RunStep(const core::FlatLayout& layout, Communicator& comm, int64_t step,
                    int64_t micro_batches, GradientReducer* reducer) {
  const MicroBatchRange range = MicroBatchesOf(comm.rank(), comm.world_size(), micro_batches);
  reducer->BeginStep();
  for (int64_t micro = range.begin; micro < range.end; ++micro) {
    reducer->BeginMicroBatch();
    for (const int64_t tensor : ReadyOrder(layout.num_tensors(), micro + comm.rank())) {
      WriteTensor(layout, tensor, step, micro, reducer->leaf());
      const absl::Status ready = reducer->TensorReady(tensor);
      ASSERT_TRUE(ready.ok()) << ready;
    }
  }
}

inline void ExpectSameBits(std::span<const float> got, const float* want, int64_t begin,
                           const std::string& what) {
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(std::memcmp(&got[i], &want[i], sizeof(float)), 0)
        << what << ": element " << begin + static_cast<int64_t>(i) << " is " << got[i] << ", want "
        << want[i];
  }
}

// The rank's blocks of Reduction::kFast against the reference tree.
inline void ExpectWithinFastBound(const core::FlatLayout& layout, const ShardMap& shards, int rank,
                                  int64_t step, int64_t micro_batches, std::span<const float> got) {
  const std::vector<float> tree = ReferenceSum(layout, step, micro_batches);
  const double bound = FastReductionBound(micro_batches, shards.world_size());
  size_t at = 0;
  for (const core::BlockRange run : shards.RunsOf(rank)) {
    for (int64_t e = run.begin * core::kBlockElems; e < run.end * core::kBlockElems; ++e, ++at) {
      ASSERT_LT(at, got.size());
      const core::FlatTensor& tensor = layout.tensor(layout.TensorOfBlock(e / core::kBlockElems));
      const bool padding = e - tensor.offset() >= tensor.numel;
      double magnitude = 0;
      for (int64_t micro = 0; micro < micro_batches && !padding; ++micro)
        magnitude += std::abs(double{Gradient(step, micro, e)});
      const double want = tree[static_cast<size_t>(e)];
      ASSERT_TRUE(std::abs(double{got[at]} - want) <= bound * magnitude)
          << micro_batches << " micro-batches on " << shards.world_size() << " ranks: element " << e
          << " is " << got[at] << ", want " << want << " within " << bound * magnitude;
    }
  }
  EXPECT_EQ(got.size(), at);
}

// Two steps; the rank's blocks must be within the bound of the reference tree, and one sum a rank
// be sent. Where all ranks have the same power of two of micro-batches the tree over ranks is the
// upper part of the tree: its bits.
inline void CheckFastSums(Communicator& comm, int64_t micro_batches) {
  const core::FlatLayout layout = TestLayout();
  const ShardMap shards(layout, comm.world_size(), kBucketBytes);
  const GradientReducerOptions options{.micro_batches_per_step = micro_batches,
                                       .reduction = Reduction::kFast};
  const auto reducer = GradientReducer::Create(layout, shards, &comm, options);
  const auto ordered =
      GradientReducer::Create(layout, shards, &comm, {.micro_batches_per_step = micro_batches});
  ASSERT_TRUE(reducer.ok() && ordered.ok()) << reducer.status() << ordered.status();
  const int64_t one_sum =
      (layout.num_blocks() - shards.NumBlocksOf(comm.rank())) * core::kBlockElems * 4;
  const ReducerCost cost = GradientReducer::Cost(layout, shards, comm.rank(), options);
  EXPECT_EQ(cost.partials_per_rank, 1);
  EXPECT_EQ(cost.sent_bytes_per_step, one_sum);
  const int64_t each = micro_batches / comm.world_size();
  const bool same_tree = each * comm.world_size() == micro_batches && (each & (each - 1)) == 0;
  for (int64_t step = 0; step < 2; ++step) {
    const int64_t sent_before = comm.bytes_sent();
    ASSERT_NO_FATAL_FAILURE(RunStep(layout, comm, step, micro_batches, reducer->get()));
    const auto sums = (*reducer)->FinishStep();
    ASSERT_TRUE(sums.ok()) << sums.status();
    EXPECT_EQ(comm.bytes_sent() - sent_before, one_sum);
    ExpectWithinFastBound(layout, shards, comm.rank(), step, micro_batches, *sums);
    ASSERT_NO_FATAL_FAILURE(RunStep(layout, comm, step, micro_batches, ordered->get()));
    const auto want = (*ordered)->FinishStep();
    ASSERT_TRUE(want.ok()) << want.status();
    if (same_tree) ExpectSameBits(*sums, want->data(), 0, "fast against ordered");
  }
}

// Two steps; the rank's blocks must have the bits of the reference tree, the bytes sent must be
// those of Cost.
inline void CheckSums(Communicator& comm, int64_t micro_batches) {
  const core::FlatLayout layout = TestLayout();
  const ShardMap shards(layout, comm.world_size(), kBucketBytes);
  const std::string what =
      absl::StrCat(micro_batches, " micro-batches on ", comm.world_size(), " ranks");
  const GradientReducerOptions options{.micro_batches_per_step = micro_batches};
  auto reducer = GradientReducer::Create(layout, shards, &comm, options);
  ASSERT_TRUE(reducer.ok()) << reducer.status();
  const ReducerCost cost = GradientReducer::Cost(layout, shards, comm.rank(), options);
  for (int64_t step = 0; step < 2; ++step) {
    const int64_t sent_before = comm.bytes_sent();
    ASSERT_NO_FATAL_FAILURE(RunStep(layout, comm, step, micro_batches, reducer->get()));
    auto sums = (*reducer)->FinishStep();
    ASSERT_TRUE(sums.ok()) << sums.status();
    const std::vector<float> want = ReferenceSum(layout, step, micro_batches);
    size_t at = 0;
    for (const core::BlockRange run : shards.RunsOf(comm.rank())) {
      const size_t elems = static_cast<size_t>(run.size() * core::kBlockElems);
      ASSERT_NO_FATAL_FAILURE(ExpectSameBits(
          sums->subspan(at, elems), &want[static_cast<size_t>(run.begin * core::kBlockElems)],
          run.begin * core::kBlockElems, what));
      at += elems;
    }
    EXPECT_EQ(sums->size(), at);
    EXPECT_EQ(comm.bytes_sent() - sent_before, cost.sent_bytes_per_step) << what;
  }
}

}  // namespace bitshard::comm

#endif  // BITSHARD_TESTS_COMM_REDUCER_REFERENCE_H_
