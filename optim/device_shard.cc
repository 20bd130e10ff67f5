#include "optim/device_shard.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_format.h"
#include "core/check.h"
#include "core/cuda_status.h"
#include "core/status_macros.h"

namespace bitshard::optim {
namespace {

// Starts of the segments of each page, and where the last ends.
std::vector<size_t> FirstSegments(const StatePages& pages) {
  std::vector<size_t> first;
  const std::vector<StateSegment>& segments = pages.segments();
  for (size_t i = 0; i < segments.size(); ++i) {
    if (i == 0 || segments[i].page != segments[i - 1].page) first.push_back(i);
  }
  first.push_back(segments.size());
  return first;
}

}  // namespace

DeviceShard::DeviceShard(const core::FlatLayout& layout, const comm::ShardMap& shards, int rank,
                         const DeviceShardOptions& options)
    : options_(options),
      pages_(layout, shards, rank,
             {.num_states = NumStates(options.name.algorithm),
              .bits = options.name.bits,
              .min_8bit_size = options.min_8bit_size}),
      first_segment_(FirstSegments(pages_)) {}

absl::StatusOr<std::unique_ptr<DeviceShard>> DeviceShard::Create(
    const core::FlatLayout& layout, const comm::ShardMap& shards, int rank,
    const DeviceShardOptions& options) {
  std::unique_ptr<DeviceShard> shard(new DeviceShard(layout, shards, rank, options));
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
                   options_.name.paged ? options_.paging : paging::DevicePagingOptions{}));
  const int64_t runs =
      resident() ? static_cast<int64_t>(pages_.segments().size()) : pages_.MostSegmentsOfPage();
  BITSHARD_ASSIGN_OR_RETURN(stepper_,
                            CudaStepper::Create({.max_runs = runs, .stream = options_.stream}));
  BITSHARD_RETURN_IF_ERROR(buffer_->BeginWalk());
  for (int64_t page = 0; page < pages_.num_pages(); ++page) {
    BITSHARD_ASSIGN_OR_RETURN(std::byte* const at, buffer_->Acquire(page, options_.stream));
    for (size_t i = first_segment_[static_cast<size_t>(page)];
         i < first_segment_[static_cast<size_t>(page) + 1]; ++i) {
      for (const ZeroCodes& codes : pages_.ZeroCodesOf(pages_.segments()[i], at)) {
        BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(cudaMemsetAsync(
            codes.at, codes.code, static_cast<size_t>(codes.count), options_.stream)));
      }
    }
    BITSHARD_RETURN_IF_ERROR(buffer_->Release(page, options_.stream, {.dirty = true}));
  }
  return buffer_->EndWalk();
}

void DeviceShard::AddPage(const DeviceShardStep& args, int64_t page, std::byte* at) {
  for (size_t i = first_segment_[static_cast<size_t>(page)];
       i < first_segment_[static_cast<size_t>(page) + 1]; ++i) {
    const StateSegment& segment = pages_.segments()[i];
    StepRun run = pages_.RunOf(segment, at);
    run.parameter = args.parameters + segment.blocks.begin * core::kBlockElems;
    run.gradient = args.gradients + segment.first_local * core::kBlockElems;
    runs_.push_back(run);
  }
}

absl::Status DeviceShard::Flush(const DeviceShardStep& args) {
  const absl::Status status =
      stepper_->Step({.algorithm = options_.name.algorithm, .hyper = args.hyper, .runs = runs_});
  runs_.clear();
  return status;
}

absl::Status DeviceShard::Step(const DeviceShardStep& args,
                               absl::FunctionRef<absl::Status(int64_t blocks)> done) {
  if (buffer_ == nullptr) return done(0);
  if (error_.ok()) error_ = resident() ? StepResident(args, done) : StepPaged(args, done);
  return error_;
}

absl::Status DeviceShard::StepResident(const DeviceShardStep& args,
                                       absl::FunctionRef<absl::Status(int64_t blocks)> done) {
  for (int64_t page = 0; page < pages_.num_pages(); ++page) {
    BITSHARD_ASSIGN_OR_RETURN(std::byte* const at, buffer_->Acquire(page, options_.stream));
    AddPage(args, page, at);
  }
  BITSHARD_RETURN_IF_ERROR(Flush(args));
  for (int64_t page = 0; page < pages_.num_pages(); ++page)
    BITSHARD_RETURN_IF_ERROR(buffer_->Release(page, options_.stream, {.dirty = true}));
  return done(BlocksThrough(pages_.num_pages() - 1));
}

// This rank's blocks up to the end of a page.
int64_t DeviceShard::BlocksThrough(int64_t page) const {
  const StateSegment& last = pages_.segments()[first_segment_[static_cast<size_t>(page) + 1] - 1];
  return last.first_local + last.blocks.size();
}

absl::Status DeviceShard::StepPaged(const DeviceShardStep& args,
                                    absl::FunctionRef<absl::Status(int64_t blocks)> done) {
  BITSHARD_RETURN_IF_ERROR(buffer_->BeginWalk());
  for (int64_t page = 0; page < pages_.num_pages(); ++page) {
    BITSHARD_ASSIGN_OR_RETURN(std::byte* const at, buffer_->Acquire(page, options_.stream));
    AddPage(args, page, at);
    BITSHARD_RETURN_IF_ERROR(Flush(args));
    BITSHARD_RETURN_IF_ERROR(buffer_->Release(page, options_.stream, {.dirty = true}));
    BITSHARD_RETURN_IF_ERROR(done(BlocksThrough(page)));
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
    const StepRun run = pages_.RunOf(*segment, staged_.memory().data());
    for (; block < std::min(blocks.end, segment->blocks.end); ++block) {
      const BlockParts parts = pages_.PartsOf(run, block - segment->blocks.begin);
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
