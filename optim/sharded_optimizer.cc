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
#include "optim/grouped_runs.h"
#include "optim/state_pages.h"

namespace bitshard::optim {
namespace {

bool IsInFile(const ShardedOptimizerOptions& options) {
  return options.settings.name.paged && options.paging.tier == paging::Tier::kFile;
}

StatePages PagesOf(const core::FlatLayout& layout, const comm::ShardMap& shards, int rank,
                   const ShardedOptimizerOptions& options, const TensorGroups& groups) {
  return StatePages(layout, shards, rank,
                    {.num_states = NumStates(options.settings.name.algorithm),
                     .forms = groups.forms(),
                     .budget_bytes = IsInFile(options) ? options.paging.budget_bytes : 0});
}

paging::PagingOptions PagingOf(const ShardedOptimizerOptions& options) {
  return options.settings.name.paged ? options.paging : paging::PagingOptions{};
}

class Engine : public ShardedOptimizer {
 public:
  struct Parts {
    const core::FlatLayout& layout;
    const comm::ShardMap& shards;
    comm::Communicator* comm;
    const ShardedOptimizerOptions& options;
    TensorGroups groups;
  };
  explicit Engine(Parts parts)
      : layout_(parts.layout),
        shards_(parts.shards),
        comm_(parts.comm),
        options_(parts.options),
        groups_(std::move(parts.groups)),
        pages_(PagesOf(layout_, shards_, comm_->rank(), options_, groups_)),
        runs_(&groups_) {}

  absl::Status Init() {
    if (pages_.num_pages() == 0) return absl::OkStatus();
    BITSHARD_ASSIGN_OR_RETURN(
        buffer_,
        paging::PagedBuffer::Create(pages_.num_pages(), pages_.page_bytes(), PagingOf(options_)));
    return WalkPages({.dirty = true}, [&](int64_t page, std::byte* at) {
      for (const StateSegment& segment : pages_.SegmentsOf(page)) {
        for (const ZeroCodes& codes : pages_.ZeroCodesOf(segment, at))
          std::memset(codes.at, codes.code, static_cast<size_t>(codes.count));
      }
    });
  }

  absl::StatusOr<double> GradientNorm(std::span<const float> gradients,
                                      double gradient_scale) override;
  absl::Status Step(const ShardedStepArgs& args) override;

  int64_t step() const override { return step_; }
  void set_step(int64_t step) override { step_ = step; }
  std::vector<StateShare> shares() const override { return groups_.Shares(layout_); }
  paging::PagingCounters paging_counters() const override {
    return buffer_ == nullptr ? paging::PagingCounters{} : buffer_->counters();
  }

  int64_t BlockStateBytes(int64_t block) const override {
    return pages_.BlockBytes(layout_.TensorOfBlock(block));
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
  // Calls work(page, its bytes) page by page, in order, and done(page) when the page is given back.
  template <class Work, class Done>
  absl::Status WalkPages(paging::ReleaseOptions release, Work&& work, Done&& done) {
    BITSHARD_RETURN_IF_ERROR(buffer_->BeginWalk());
    for (int64_t page = 0; page < pages_.num_pages(); ++page) {
      BITSHARD_ASSIGN_OR_RETURN(const std::span<std::byte> bytes, buffer_->Acquire(page));
      work(page, bytes.data());
      BITSHARD_RETURN_IF_ERROR(buffer_->Release(page, release));
      BITSHARD_RETURN_IF_ERROR(done(page));
    }
    return buffer_->EndWalk();
  }
  template <class Work>
  absl::Status WalkPages(paging::ReleaseOptions release, Work&& work) {
    return WalkPages(release, work, [](int64_t) { return absl::OkStatus(); });
  }

  StepMoment MomentOf(const ShardedStepArgs& args) const {
    return {.step = step_ + 1,
            .learning_rate = args.learning_rate,
            .gradient_scale = args.gradient_scale};
  }
  StepArgs ArgsOf(int64_t group, const ShardedStepArgs& args) const;
  void StepPage(int64_t page, std::byte* at, const ShardedStepArgs& args,
                std::span<const double> scales);
  absl::StatusOr<std::vector<double>> UpdateScalesOf(const ShardedStepArgs& args);
  template <class T>
  absl::StatusOr<std::vector<std::vector<T>>> GatherBlocks(const std::vector<T>& mine,
                                                           const char* name);
  template <class Copy>
  absl::Status CopyState(core::BlockRange blocks, size_t bytes, bool dirty, Copy&& copy);
  absl::Status StartGathers(std::span<float> parameters, int64_t local_blocks_done);
  absl::Status FinishGathers();

  const core::FlatLayout layout_;
  const comm::ShardMap shards_;
  comm::Communicator* comm_;
  const ShardedOptimizerOptions options_;
  const TensorGroups groups_;
  const StatePages pages_;
  std::unique_ptr<paging::PagedBuffer> buffer_;
  int64_t step_ = 0;

  // Of the step that is running.
  GroupedRuns runs_;
  int64_t next_bucket_ = 0;
  std::vector<std::unique_ptr<comm::Work>> gathers_;
};

StepArgs Engine::ArgsOf(int64_t group, const ShardedStepArgs& args) const {
  StepArgs made = groups_.ArgsOf(group, MomentOf(args));
  made.runs = runs_.of(group);
  return made;
}

void Engine::StepPage(int64_t page, std::byte* at, const ShardedStepArgs& args,
                      std::span<const double> scales) {
  runs_.Clear();
  runs_.Add(pages_, pages_.SegmentsOf(page), at,
            {.parameters = args.parameters.data(),
             .gradients = args.gradients.data(),
             .update_scales = scales});
  for (int64_t group = 0; group < groups_.num_groups(); ++group) optim::Step(ArgsOf(group, args));
}

// The pre-pass of max_unorm: reads all state, changes none.
absl::StatusOr<std::vector<double>> Engine::UpdateScalesOf(const ShardedStepArgs& args) {
  std::vector<BlockNorms> mine(static_cast<size_t>(shards_.NumBlocksOf(comm_->rank())));
  const auto work = [&](int64_t page, std::byte* at) {
    runs_.Clear();
    runs_.Add(pages_, pages_.SegmentsOf(page), at,
              {.parameters = args.parameters.data(), .gradients = args.gradients.data()});
    for (int64_t group = 0; group < groups_.num_groups(); ++group) {
      const StepArgs of_group = ArgsOf(group, args);
      int64_t blocks = 0;
      for (const StepRun& run : of_group.runs) blocks += run.num_blocks();
      std::vector<BlockNorms> norms(static_cast<size_t>(blocks));
      UpdateNorms(of_group, norms);
      auto from = norms.begin();
      for (size_t i = 0; i < of_group.runs.size(); ++i) {
        const int64_t count = of_group.runs[i].num_blocks();
        std::copy(from, from + count, mine.begin() + runs_.first_local_of(group)[i]);
        from += count;
      }
    }
  };
  if (buffer_ != nullptr) BITSHARD_RETURN_IF_ERROR(WalkPages({.dirty = false}, work));
  BITSHARD_ASSIGN_OR_RETURN(const auto parts, GatherBlocks(mine, "norms of updates"));
  return UpdateScales(layout_, shards_, parts, groups_.max_unorm());
}

// Starts gathering the buckets whose blocks of this rank are all updated.
absl::Status Engine::StartGathers(std::span<float> parameters, int64_t local_blocks_done) {
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
          parameters.subspan(static_cast<size_t>(run.begin * core::kBlockElems),
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
  BITSHARD_RETURN_IF_ERROR(groups_.CheckMoment(MomentOf(args)));
  std::vector<double> scales;
  if (groups_.max_unorm() > 0) {
    BITSHARD_ASSIGN_OR_RETURN(scales, UpdateScalesOf(args));
  }
  if (buffer_ != nullptr) {
    BITSHARD_RETURN_IF_ERROR(WalkPages(
        {.dirty = true}, [&](int64_t page, std::byte* at) { StepPage(page, at, args, scales); },
        [&](int64_t page) { return StartGathers(args.parameters, pages_.BlocksThrough(page)); }));
  }
  // A rank without blocks, and buckets in which this rank has none.
  BITSHARD_RETURN_IF_ERROR(StartGathers(args.parameters, shards_.NumBlocksOf(comm_->rank())));
  BITSHARD_RETURN_IF_ERROR(FinishGathers());
  ++step_;
  return absl::OkStatus();
}

// What every rank has for its blocks, by rank.
template <class T>
absl::StatusOr<std::vector<std::vector<T>>> Engine::GatherBlocks(const std::vector<T>& mine,
                                                                 const char* name) {
  std::vector<std::vector<T>> parts(static_cast<size_t>(comm_->world_size()));
  std::vector<std::span<std::byte>> gathered;
  for (int rank = 0; rank < comm_->world_size(); ++rank) {
    auto& part = parts[static_cast<size_t>(rank)];
    part.resize(static_cast<size_t>(shards_.NumBlocksOf(rank)));
    gathered.push_back(std::as_writable_bytes(std::span(part)));
  }
  BITSHARD_RETURN_IF_ERROR(comm_->AllGather(std::as_bytes(std::span(mine)), gathered, name));
  return parts;
}

absl::StatusOr<double> Engine::GradientNorm(std::span<const float> gradients,
                                            double gradient_scale) {
  std::vector<double> mine(static_cast<size_t>(shards_.NumBlocksOf(comm_->rank())));
  SumSquaresByBlock(gradients, mine);
  BITSHARD_ASSIGN_OR_RETURN(const auto parts, GatherBlocks(mine, "gradient norm"));
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
    for (; block < std::min(blocks.end, segment->blocks.end); ++block) {
      const BlockParts parts = pages_.PartsOf(*segment, page.data(), block);
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
  BITSHARD_ASSIGN_OR_RETURN(TensorGroups groups, TensorGroups::Create(layout, options.settings));
  auto engine = std::make_unique<Engine>(Engine::Parts{.layout = layout,
                                                       .shards = shards,
                                                       .comm = comm,
                                                       .options = options,
                                                       .groups = std::move(groups)});
  BITSHARD_RETURN_IF_ERROR(engine->Init());
  return engine;
}

absl::StatusOr<int64_t> ShardedOptimizer::StateBytes(const core::FlatLayout& layout,
                                                     const comm::ShardMap& shards, int rank,
                                                     const ShardedOptimizerOptions& options) {
  BITSHARD_ASSIGN_OR_RETURN(const TensorGroups groups,
                            TensorGroups::Create(layout, options.settings));
  const StatePages pages = PagesOf(layout, shards, rank, options, groups);
  const int64_t whole = pages.num_pages() * pages.page_bytes();
  return IsInFile(options) ? std::min(whole, options.paging.budget_bytes) : whole;
}

absl::StatusOr<int64_t> ShardedOptimizer::SentBytesPerStep(const core::FlatLayout& layout,
                                                           const comm::ShardMap& shards, int rank,
                                                           const ShardedOptimizerOptions& options) {
  BITSHARD_ASSIGN_OR_RETURN(const TensorGroups groups,
                            TensorGroups::Create(layout, options.settings));
  constexpr auto kNormBytes = static_cast<int64_t>(sizeof(double));
  constexpr auto kUpdateNormBytes = static_cast<int64_t>(sizeof(BlockNorms));
  const int64_t others = shards.world_size() - 1;
  const int64_t block_bytes =
      core::kBlockElems * 4 + kNormBytes + (groups.max_unorm() > 0 ? kUpdateNormBytes : 0);
  return others * shards.NumBlocksOf(rank) * block_bytes;
}

}  // namespace bitshard::optim
