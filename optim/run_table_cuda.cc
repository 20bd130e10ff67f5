#include "optim/run_table_cuda.h"

#include <algorithm>
#include <cstring>

namespace bitshard::optim {

absl::StatusOr<std::unique_ptr<RunTable>> RunTable::Create(int64_t max_runs, cudaStream_t stream) {
  std::unique_ptr<RunTable> table(new RunTable(stream));
  BITSHARD_RETURN_IF_ERROR(AllocateOnDevice<TableRun>(max_runs, &table->runs_));
  for (Upload& upload : table->uploads_) {
    void* p = nullptr;
    BITSHARD_RETURN_IF_ERROR(
        BITSHARD_CUDA_STATUS(cudaMallocHost(&p, static_cast<size_t>(max_runs) * sizeof(TableRun))));
    upload.runs.reset(static_cast<TableRun*>(p));
    cudaEvent_t event = nullptr;
    BITSHARD_RETURN_IF_ERROR(
        BITSHARD_CUDA_STATUS(cudaEventCreateWithFlags(&event, cudaEventDisableTiming)));
    upload.taken.reset(event);
  }
  return table;
}

absl::Status RunTable::Send(const std::vector<TableRun>& table) {
  const size_t bytes = table.size() * sizeof(TableRun);
  if (table.size() == sent_.size() && std::memcmp(table.data(), sent_.data(), bytes) == 0)
    return absl::OkStatus();
  Upload& upload = uploads_[next_upload_];
  next_upload_ = (next_upload_ + 1) % uploads_.size();
  BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(cudaEventSynchronize(upload.taken.get())));
  std::copy(table.begin(), table.end(), upload.runs.get());
  sent_.clear();
  BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(
      cudaMemcpyAsync(runs_.get(), upload.runs.get(), bytes, cudaMemcpyHostToDevice, stream_)));
  BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(cudaEventRecord(upload.taken.get(), stream_)));
  sent_ = table;
  return absl::OkStatus();
}

}  // namespace bitshard::optim
