#include "optim/device_shard.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"
#include "core/check.h"
#include "core/cuda_status.h"
#include "core/status_macros.h"

namespace bitshard::optim {

DeviceShard::DeviceShard(const core::FlatLayout& layout, const comm::ShardMap& shards, int rank,
                         const DeviceShardOptions& options, TensorGroups groups)
    : options_(options),
      groups_(std::move(groups)),
      pages_(layout, shards, rank,
             {.num_states = NumStates(options.settings.name.algorithm), .forms = groups_.forms()}),
      runs_(&groups_) {}

absl::StatusOr<std::unique_ptr<DeviceShard>> DeviceShard::Create(
    const core::FlatLayout& layout, const comm::ShardMap& shards, int rank,
    const DeviceShardOptions& options) {
  BITSHARD_ASSIGN_OR_RETURN(TensorGroups groups, TensorGroups::Create(layout, options.settings));
  std::unique_ptr<DeviceShard> shard(
      new DeviceShard(layout, shards, rank, options, std::move(groups)));
  if (shard->pages_.num_pages() > 0) BITSHARD_RETURN_IF_ERROR(shard->Init());
  return shard;
}

DeviceShard::~DeviceShard() {
  if (buffer_ != nullptr) (void)BITSHARD_CUDA_STATUS(cudaStreamSynchronize(options_.stream));
}

absl::Status DeviceShard::Init() {
  BITSHARD_ASSIGN_OR_RETURN(
      buffer_, paging::DevicePagedBuffer::Create(
                   pages_.num_pages(), pages_.page_bytes(),
                   options_.settings.name.paged ? options_.paging : paging::DevicePagingOptions{}));
  const int64_t runs =
      resident() ? static_cast<int64_t>(pages_.segments().size()) : pages_.MostSegmentsOfPage();
  for (int64_t group = 0; group < groups_.num_groups(); ++group) {
    BITSHARD_ASSIGN_OR_RETURN(auto stepper,
                              CudaStepper::Create({.max_runs = runs, .stream = options_.stream}));
    steppers_.push_back(std::move(stepper));
  }
  BITSHARD_RETURN_IF_ERROR(buffer_->BeginWalk());
  for (int64_t page = 0; page < pages_.num_pages(); ++page) {
    BITSHARD_ASSIGN_OR_RETURN(std::byte* const at, buffer_->Acquire(page, options_.stream));
    for (const StateSegment& segment : pages_.SegmentsOf(page)) {
      for (const ZeroCodes& codes : pages_.ZeroCodesOf(segment, at)) {
        BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(cudaMemsetAsync(
            codes.at, codes.code, static_cast<size_t>(codes.count), options_.stream)));
      }
    }
    BITSHARD_RETURN_IF_ERROR(buffer_->Release(page, options_.stream, {.dirty = true}));
  }
  return buffer_->EndWalk();
}

void DeviceShard::AddPage(const DeviceShardStep& args, int64_t page, std::byte* at) {
  runs_.Add(pages_, pages_.SegmentsOf(page), at,
            {.parameters = args.parameters,
             .gradients = args.gradients,
             .update_scales = args.update_scales});
}

// Puts what AddPage collected on the stream: the step, or with `norms` the pre-pass.
absl::Status DeviceShard::Flush(const DeviceShardStep& args, BlockNorms* norms) {
  for (int64_t group = 0; group < groups_.num_groups(); ++group) {
    StepArgs of_group = groups_.ArgsOf(group, args.moment);
    of_group.runs = runs_.of(group);
    CudaStepper& stepper = *steppers_[static_cast<size_t>(group)];
    BITSHARD_RETURN_IF_ERROR(
        norms == nullptr ? stepper.Step(of_group)
                         : stepper.UpdateNorms(of_group, runs_.first_local_of(group), norms));
  }
  runs_.Clear();
  return absl::OkStatus();
}

absl::Status DeviceShard::Step(const DeviceShardStep& args,
                               absl::FunctionRef<absl::Status(int64_t blocks)> done) {
  BITSHARD_RETURN_IF_ERROR(groups_.CheckMoment(args.moment));
  if (buffer_ == nullptr) return done(0);
  if (error_.ok())
    error_ = resident() ? WalkResident(args, nullptr, done) : WalkPaged(args, nullptr, done);
  return error_;
}

absl::Status DeviceShard::UpdateNorms(const DeviceShardStep& args, BlockNorms* out) {
  BITSHARD_RETURN_IF_ERROR(groups_.CheckMoment(args.moment));
  if (buffer_ == nullptr) return absl::OkStatus();
  const auto done = [](int64_t) { return absl::OkStatus(); };
  if (error_.ok()) error_ = resident() ? WalkResident(args, out, done) : WalkPaged(args, out, done);
  return error_;
}

absl::Status DeviceShard::WalkResident(const DeviceShardStep& args, BlockNorms* norms,
                                       absl::FunctionRef<absl::Status(int64_t blocks)> done) {
  for (int64_t page = 0; page < pages_.num_pages(); ++page) {
    BITSHARD_ASSIGN_OR_RETURN(std::byte* const at, buffer_->Acquire(page, options_.stream));
    AddPage(args, page, at);
  }
  BITSHARD_RETURN_IF_ERROR(Flush(args, norms));
  for (int64_t page = 0; page < pages_.num_pages(); ++page) {
    BITSHARD_RETURN_IF_ERROR(buffer_->Release(page, options_.stream, {.dirty = norms == nullptr}));
  }
  return done(pages_.BlocksThrough(pages_.num_pages() - 1));
}

absl::Status DeviceShard::WalkPaged(const DeviceShardStep& args, BlockNorms* norms,
                                    absl::FunctionRef<absl::Status(int64_t blocks)> done) {
  BITSHARD_RETURN_IF_ERROR(buffer_->BeginWalk());
  for (int64_t page = 0; page < pages_.num_pages(); ++page) {
    BITSHARD_ASSIGN_OR_RETURN(std::byte* const at, buffer_->Acquire(page, options_.stream));
    AddPage(args, page, at);
    BITSHARD_RETURN_IF_ERROR(Flush(args, norms));
    BITSHARD_RETURN_IF_ERROR(buffer_->Release(page, options_.stream, {.dirty = norms == nullptr}));
    BITSHARD_RETURN_IF_ERROR(done(pages_.BlocksThrough(page)));
  }
  return buffer_->EndWalk();
}

absl::Status DeviceShard::CopyPage(void* to, const void* from) {
  BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(cudaMemcpyAsync(
      to, from, static_cast<size_t>(pages_.page_bytes()), cudaMemcpyDefault, options_.stream)));
  return BITSHARD_CUDA_STATUS(cudaStreamSynchronize(options_.stream));
}

template <class Copy>
absl::Status DeviceShard::CopyState(core::BlockRange blocks, size_t bytes, bool dirty,
                                    Copy&& copy) {
  BITSHARD_RETURN_IF_ERROR(error_);
  int64_t offset = 0;
  for (int64_t block = blocks.begin; block < blocks.end;) {
    const StateSegment* segment = pages_.Find(block);
    if (segment == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrFormat("optimizer state of block %d: this rank does not own it", block));
    }
    if (staged_.memory().empty()) {
      BITSHARD_ASSIGN_OR_RETURN(
          staged_, paging::Allocation<paging::PinnedResource>::Create(&pinned_, pages_.page_bytes(),
                                                                      "a page of optimizer state"));
    }
    BITSHARD_ASSIGN_OR_RETURN(std::byte* const page,
                              buffer_->Acquire(segment->page, options_.stream));
    BITSHARD_RETURN_IF_ERROR(CopyPage(staged_.memory().data(), page));
    for (; block < std::min(blocks.end, segment->blocks.end); ++block) {
      const BlockParts parts = pages_.PartsOf(*segment, staged_.memory().data(), block);
      for (int i = 0; i < parts.count; ++i) {
        BITSHARD_CHECK(static_cast<size_t>(offset + parts.bytes[i]) <= bytes) << bytes;
        copy(parts.at[i], offset, parts.bytes[i]);
        offset += parts.bytes[i];
      }
    }
    if (dirty) BITSHARD_RETURN_IF_ERROR(CopyPage(page, staged_.memory().data()));
    BITSHARD_RETURN_IF_ERROR(buffer_->Release(segment->page, options_.stream, {.dirty = dirty}));
  }
  BITSHARD_CHECK(static_cast<size_t>(offset) == bytes) << offset << " of " << bytes;
  return absl::OkStatus();
}

absl::Status DeviceShard::ExportState(core::BlockRange blocks, std::span<std::byte> out) {
  return CopyState(blocks, out.size(), false, [&](std::byte* state, int64_t offset, int64_t bytes) {
    std::memcpy(out.data() + offset, state, static_cast<size_t>(bytes));
  });
}

absl::Status DeviceShard::ImportState(core::BlockRange blocks, std::span<const std::byte> in) {
  return CopyState(blocks, in.size(), true, [&](std::byte* state, int64_t offset, int64_t bytes) {
    std::memcpy(state, in.data() + offset, static_cast<size_t>(bytes));
  });
}

}  // namespace bitshard::optim
