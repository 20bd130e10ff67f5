#include "optim/sharded_optimizer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/check.h"
#include "core/error.h"
#include "core/status_macros.h"
#include "optim/block_norm.h"
#include "optim/state_pages.h"

namespace bitshard::optim {
namespace {

StatePages PagesOf(const core::FlatLayout& layout, const comm::ShardMap& shards, int rank,
                   const ShardedOptimizerOptions& options) {
  const bool in_file = options.name.paged && options.paging.tier == paging::Tier::kFile;
  return StatePages(layout, shards, rank,
                    {.num_states = NumStates(options.name.algorithm),
                     .bits = options.name.bits,
                     .min_8bit_size = options.min_8bit_size,
                     .budget_bytes = in_file ? options.paging.budget_bytes : 0});
}

paging::PagingOptions PagingOf(const ShardedOptimizerOptions& options) {
  return options.name.paged ? options.paging : paging::PagingOptions{};
}

class Engine : public ShardedOptimizer {
 public:
  Engine(const core::FlatLayout& layout, const comm::ShardMap& shards, comm::Communicator* comm,
         const ShardedOptimizerOptions& options)
      : layout_(layout),
        shards_(shards),
        comm_(comm),
        options_(options),
        pages_(PagesOf(layout, shards, comm->rank(), options)) {}

  absl::Status Init() {
    if (pages_.num_pages() == 0) return absl::OkStatus();
    BITSHARD_ASSIGN_OR_RETURN(
        buffer_,
        paging::PagedBuffer::Create(pages_.num_pages(), pages_.page_bytes(), PagingOf(options_)));
    return WalkPages([&](const StateSegment& segment, std::byte* page) {
      for (const ZeroCodes& codes : pages_.ZeroCodesOf(segment, page))
        std::memset(codes.at, codes.code, static_cast<size_t>(codes.count));
      return absl::OkStatus();
    });
  }

  absl::StatusOr<double> GradientNorm(std::span<const float> gradients,
                                      double gradient_scale) override;
  absl::Status Step(const ShardedStepArgs& args) override;

  int64_t step() const override { return step_; }
  void set_step(int64_t step) override { step_ = step; }
  StateSplit split() const override {
    StateSplit split;
    for (const core::FlatTensor& tensor : layout_.tensors()) {
      const bool is_8bit = pages_.Is8Bit(tensor);
      (is_8bit ? split.tensors_8bit : split.tensors_32bit) += 1;
      (is_8bit ? split.elems_8bit : split.elems_32bit) += tensor.numel;
    }
    return split;
  }
  paging::PagingCounters paging_counters() const override {
    return buffer_ == nullptr ? paging::PagingCounters{} : buffer_->counters();
  }

  int64_t BlockStateBytes(int64_t block) const override {
    return pages_.BlockBytes(pages_.Is8Bit(layout_.tensor(layout_.TensorOfBlock(block))));
  }
  absl::Status ExportState(core::BlockRange blocks, std::span<std::byte> out) override {
    return CopyState(blocks, out.size(), false,
                     [&](std::byte* state, int64_t offset, int64_t bytes) {
                       std::memcpy(out.data() + offset, state, static_cast<size_t>(bytes));
                     });
  }
  absl::Status ImportState(core::BlockRange blocks, std::span<const std::byte> in) override {
    return CopyState(blocks, in.size(), true, [&](std::byte* state, int64_t offset, int64_t bytes) {
      std::memcpy(state, in.data() + offset, static_cast<size_t>(bytes));
    });
  }

 private:
  // Calls body(segment, page) for every segment, page by page, in order.
  template <class Body>
  absl::Status WalkPages(Body&& body) {
    BITSHARD_RETURN_IF_ERROR(buffer_->BeginWalk());
    size_t next = 0;
    const std::vector<StateSegment>& segments = pages_.segments();
    for (int64_t page = 0; page < pages_.num_pages(); ++page) {
      BITSHARD_ASSIGN_OR_RETURN(const std::span<std::byte> bytes, buffer_->Acquire(page));
      for (; next < segments.size() && segments[next].page == page; ++next) {
        BITSHARD_RETURN_IF_ERROR(body(segments[next], bytes.data()));
      }
      BITSHARD_RETURN_IF_ERROR(PageDone(page, next));
    }
    return buffer_->EndWalk();
  }
  absl::Status PageDone(int64_t page, size_t segments_done);

  template <class Copy>
  absl::Status CopyState(core::BlockRange blocks, size_t bytes, bool dirty, Copy&& copy);
  absl::Status StartGathers(int64_t local_blocks_done);
  absl::Status FinishGathers();

  const core::FlatLayout layout_;
  const comm::ShardMap shards_;
  comm::Communicator* comm_;
  const ShardedOptimizerOptions options_;
  const StatePages pages_;
  std::unique_ptr<paging::PagedBuffer> buffer_;
  int64_t step_ = 0;

  // Of the step that is running.
  const ShardedStepArgs* running_ = nullptr;
  std::vector<StepRun> page_runs_;
  int64_t next_bucket_ = 0;
  std::vector<std::unique_ptr<comm::Work>> gathers_;
};

// Runs the step for the segments of a page that were collected, gives the page back, and starts
// gathering the buckets whose blocks of this rank are all updated.
absl::Status Engine::PageDone(int64_t page, size_t segments_done) {
  if (running_ != nullptr) {
    optim::Step({.algorithm = options_.name.algorithm,
                 .hyper = {.step = step_ + 1,
                           .learning_rate = running_->learning_rate,
                           .beta1 = options_.beta1,
                           .beta2 = options_.beta2,
                           .eps = options_.eps,
                           .weight_decay = options_.weight_decay,
                           .gradient_scale = running_->gradient_scale},
                 .runs = page_runs_});
    page_runs_.clear();
  }
  BITSHARD_RETURN_IF_ERROR(buffer_->Release(page, {.dirty = true}));
  if (running_ == nullptr) return absl::OkStatus();
  const StateSegment& last = pages_.segments()[segments_done - 1];
  return StartGathers(last.first_local + last.blocks.size());
}

absl::Status Engine::StartGathers(int64_t local_blocks_done) {
  if (comm_->world_size() == 1) return absl::OkStatus();
  int64_t before = 0;
  for (int64_t b = 0; b < next_bucket_; ++b) before += shards_.Run(b, comm_->rank()).size();
  while (next_bucket_ < shards_.num_buckets()) {
    before += shards_.Run(next_bucket_, comm_->rank()).size();
    if (before > local_blocks_done) break;
    std::vector<std::span<std::byte>> gathered;
    for (int rank = 0; rank < comm_->world_size(); ++rank) {
      const core::BlockRange run = shards_.Run(next_bucket_, rank);
      gathered.push_back(std::as_writable_bytes(
          running_->parameters.subspan(static_cast<size_t>(run.begin * core::kBlockElems),
                                       static_cast<size_t>(run.size() * core::kBlockElems))));
    }
    const std::span<const std::byte> mine = gathered[static_cast<size_t>(comm_->rank())];
    BITSHARD_ASSIGN_OR_RETURN(
        std::unique_ptr<comm::Work> work,
        comm_->StartAllGather(mine, std::move(gathered),
                              absl::StrCat("parameters of bucket ", next_bucket_)));
    gathers_.push_back(std::move(work));
    ++next_bucket_;
  }
  return absl::OkStatus();
}

absl::Status Engine::FinishGathers() {
  for (const auto& work : gathers_) BITSHARD_RETURN_IF_ERROR(work->Wait());
  gathers_.clear();
  next_bucket_ = 0;
  return absl::OkStatus();
}

absl::Status Engine::Step(const ShardedStepArgs& args) {
  const int64_t mine = shards_.NumBlocksOf(comm_->rank()) * core::kBlockElems;
  if (static_cast<int64_t>(args.parameters.size()) != layout_.padded_elems() ||
      static_cast<int64_t>(args.gradients.size()) != mine) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "optimizer step: got %d parameters and %d gradients, want %d and %d",
        args.parameters.size(), args.gradients.size(), layout_.padded_elems(), mine));
  }
  running_ = &args;
  absl::Status status;
  if (buffer_ != nullptr) {
    status = WalkPages([&](const StateSegment& segment, std::byte* page) {
      StepRun run = pages_.RunOf(segment, page);
      run.parameter = args.parameters.data() + segment.blocks.begin * core::kBlockElems;
      run.gradient = args.gradients.data() + segment.first_local * core::kBlockElems;
      page_runs_.push_back(run);
      return absl::OkStatus();
    });
  }
  // A rank without blocks, and buckets in which this rank has none.
  if (status.ok()) status = StartGathers(shards_.NumBlocksOf(comm_->rank()));
  running_ = nullptr;
  BITSHARD_RETURN_IF_ERROR(status);
  BITSHARD_RETURN_IF_ERROR(FinishGathers());
  ++step_;
  return absl::OkStatus();
}

absl::StatusOr<double> Engine::GradientNorm(std::span<const float> gradients,
                                            double gradient_scale) {
  const int world_size = comm_->world_size();
  std::vector<double> mine(static_cast<size_t>(shards_.NumBlocksOf(comm_->rank())));
  SumSquaresByBlock(gradients, mine);
  std::vector<std::vector<double>> parts(static_cast<size_t>(world_size));
  std::vector<std::span<std::byte>> gathered;
  for (int rank = 0; rank < world_size; ++rank) {
    auto& part = parts[static_cast<size_t>(rank)];
    part.resize(static_cast<size_t>(shards_.NumBlocksOf(rank)));
    gathered.push_back(std::as_writable_bytes(std::span(part)));
  }
  BITSHARD_RETURN_IF_ERROR(
      comm_->AllGather(std::as_bytes(std::span(mine)), gathered, "gradient norm"));

  return BlockSquaresNorm(layout_, shards_, parts) * std::abs(gradient_scale);
}

template <class Copy>
absl::Status Engine::CopyState(core::BlockRange blocks, size_t bytes, bool dirty, Copy&& copy) {
  int64_t offset = 0;
  for (int64_t block = blocks.begin; block < blocks.end;) {
    const StateSegment* segment = pages_.Find(block);
    if (segment == nullptr) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "optimizer state of block %d: rank %d does not own it", block, comm_->rank()));
    }
    BITSHARD_ASSIGN_OR_RETURN(const std::span<std::byte> page, buffer_->Acquire(segment->page));
    const StepRun run = pages_.RunOf(*segment, page.data());
    for (; block < std::min(blocks.end, segment->blocks.end); ++block) {
      const BlockParts parts = pages_.PartsOf(run, block - segment->blocks.begin);
      for (int i = 0; i < parts.count; ++i) {
        BITSHARD_CHECK(static_cast<size_t>(offset + parts.bytes[i]) <= bytes) << bytes;
        copy(parts.at[i], offset, parts.bytes[i]);
        offset += parts.bytes[i];
      }
    }
    BITSHARD_RETURN_IF_ERROR(buffer_->Release(segment->page, {.dirty = dirty}));
  }
  BITSHARD_CHECK(static_cast<size_t>(offset) == bytes) << offset << " of " << bytes;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<ShardedOptimizer>> ShardedOptimizer::Create(
    const core::FlatLayout& layout, const comm::ShardMap& shards, comm::Communicator* comm,
    const ShardedOptimizerOptions& options) {
  auto engine = std::make_unique<Engine>(layout, shards, comm, options);
  BITSHARD_RETURN_IF_ERROR(engine->Init());
  return engine;
}

int64_t ShardedOptimizer::StateBytes(const core::FlatLayout& layout, const comm::ShardMap& shards,
                                     int rank, const ShardedOptimizerOptions& options) {
  const StatePages pages = PagesOf(layout, shards, rank, options);
  const int64_t whole = pages.num_pages() * pages.page_bytes();
  const paging::PagingOptions paging = PagingOf(options);
  return paging.tier == paging::Tier::kFile ? std::min(whole, paging.budget_bytes) : whole;
}

int64_t ShardedOptimizer::SentBytesPerStep(const comm::ShardMap& shards, int rank) {
  const int64_t others = shards.world_size() - 1;
  const int64_t parameters = shards.NumBlocksOf(rank) * core::kBlockElems * 4;
  const int64_t norms = shards.NumBlocksOf(rank) * 8;
  return others * (parameters + norms);
}

}  // namespace bitshard::optim
