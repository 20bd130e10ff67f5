#include "comm/internal/nccl_engine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "comm/internal/nccl_status.h"
#include "comm/internal/watchdog.h"
#include "core/cuda_status.h"
#include "core/error.h"

namespace bitshard::comm::internal {
namespace {

// Errors are noticed this much later: nothing against the seconds that a restart takes, and one
// query in that time costs nothing.
constexpr std::chrono::milliseconds kWatchPause(10);
constexpr absl::Duration kPollPause = absl::Microseconds(50);
constexpr int kPeerExitCode = static_cast<int>(core::ErrorKind::kPeer);

}  // namespace

NcclOperation::~NcclOperation() {
  if (event != nullptr) (void)cudaEventDestroy(event);
}

NcclEngine::NcclEngine(const NcclEngineOptions& options)
    : rank_(options.rank),
      device_(options.device),
      abort_limit_(options.abort_limit),
      comm_(options.comm),
      timeout_(options.timeout),
      thread_([this] { Watch(); }) {}

NcclEngine::~NcclEngine() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    AbortLocked("it was destroyed without Finalize");
  }
  changed_.notify_all();
  thread_.join();
}

std::string NcclEngine::Where() {
  std::string now = starting_;
  if (now.empty()) now = running_.empty() ? "between collectives" : running_.front()->call;
  return absl::StrCat("rank ", rank_, ": ", now, "; last done: ", last_done_);
}

absl::Status NcclEngine::FailLocked(const absl::Status& why) {
  if (!failure_.ok()) return failure_;
  failure_ = core::AddContext(why, Where());
  AbortLocked(std::string(failure_.message()));
  changed_.notify_all();
  return failure_;
}

void NcclEngine::AbortLocked(const std::string& why) {
  if (comm_ == nullptr) return;
  const Watchdog watchdog(abort_limit_,
                          absl::StrCat("ncclCommAbort does not return; aborted for: ", why),
                          kPeerExitCode);
  (void)ncclCommAbort(std::exchange(comm_, nullptr));
}

// Drops operations that are complete from the front of those that run.
void NcclEngine::Retire() {
  while (!running_.empty()) {
    const cudaError_t state = cudaEventQuery(running_.front()->event);
    if (state == cudaErrorNotReady) {
      (void)cudaGetLastError();  // An answer, but the runtime keeps it as an error.
      return;
    }
    if (state != cudaSuccess) {
      (void)FailLocked(core::CudaStatus(state, "collective", __FILE__, __LINE__));
      return;
    }
    running_.front()->done = true;
    last_done_ = running_.front()->call;
    running_.pop_front();
    oldest_since_ = Clock::now();
    changed_.notify_all();
  }
}

void NcclEngine::CheckAge() {
  if (running_.empty() || Clock::now() - oldest_since_ < absl::ToChronoNanoseconds(timeout_))
    return;
  (void)FailLocked(core::PeerError(absl::StrCat(
      "not complete within ", absl::FormatDuration(timeout_),
      ": a rank hangs, has died, has made another call, or is much slower than the others; if it "
      "only needs longer, raise comm.timeout")));
}

void NcclEngine::Watch() {
  (void)cudaSetDevice(device_);
  std::unique_lock lock(mutex_);
  while (!stop_ && failure_.ok() && comm_ != nullptr) {
    ncclResult_t error = ncclSuccess;
    ncclResult_t result = ncclCommGetAsyncError(comm_, &error);
    if (result == ncclSuccess && error != ncclInProgress) result = error;
    if (result == ncclSuccess) {
      Retire();
      CheckAge();
    } else {
      (void)FailLocked(NcclStatus(result, "asynchronous error", comm_));
    }
    if (failure_.ok()) changed_.wait_for(lock, kWatchPause);
  }
}

// A non-blocking communicator has done what it was told only when it says so.
ncclResult_t NcclEngine::Settle(ncclResult_t result) {
  const auto deadline = Clock::now() + absl::ToChronoNanoseconds(timeout_);
  while (result == ncclInProgress && Clock::now() < deadline) {
    const ncclResult_t asked = ncclCommGetAsyncError(comm_, &result);
    if (asked != ncclSuccess) return asked;
    if (result == ncclInProgress) absl::SleepFor(kPollPause);
  }
  return result;
}

absl::StatusOr<std::shared_ptr<NcclOperation>> NcclEngine::Start(
    const std::string& call, const std::function<ncclResult_t(ncclComm_t)>& issue,
    cudaStream_t stream) {
  const std::lock_guard lock(mutex_);
  if (!failure_.ok()) return failure_;
  if (comm_ == nullptr) return absl::FailedPreconditionError(absl::StrCat(call, " after Finalize"));
  auto operation = std::make_shared<NcclOperation>();
  operation->call = absl::StrCat(call, " (number ", num_started_++, ")");
  starting_ = operation->call;
  const absl::Status made =
      BITSHARD_CUDA_STATUS(cudaEventCreateWithFlags(&operation->event, cudaEventDisableTiming));
  if (!made.ok()) return FailLocked(made);

  ncclResult_t result = ncclGroupStart();
  if (result == ncclSuccess) result = issue(comm_);
  // Also after an error, which it then tells again: the group must not stay open.
  const ncclResult_t end = ncclGroupEnd();
  if (result == ncclSuccess) result = Settle(end);
  if (result != ncclSuccess) return FailLocked(NcclStatus(result, "start", comm_));
  const absl::Status recorded = BITSHARD_CUDA_STATUS(cudaEventRecord(operation->event, stream));
  if (!recorded.ok()) return FailLocked(recorded);
  if (running_.empty()) oldest_since_ = Clock::now();
  running_.push_back(operation);
  starting_.clear();
  return operation;
}

absl::Status NcclEngine::Wait(NcclOperation* operation) {
  std::unique_lock lock(mutex_);
  absl::Duration pause = kPollPause;
  while (!operation->done) {
    if (!failure_.ok()) return failure_;
    Retire();
    if (operation->done || !failure_.ok()) continue;
    changed_.wait_for(lock, absl::ToChronoNanoseconds(pause));
    pause = std::min(2 * pause, absl::Milliseconds(1));
  }
  return absl::OkStatus();
}

absl::Status NcclEngine::Finalize() {
  const std::lock_guard lock(mutex_);
  if (!failure_.ok() || comm_ == nullptr) return failure_;
  const ncclResult_t result = Settle(ncclCommFinalize(comm_));
  if (result != ncclSuccess) return FailLocked(NcclStatus(result, "end of the run", comm_));
  Retire();
  const Watchdog watchdog(abort_limit_, "ncclCommDestroy does not return", kPeerExitCode);
  return NcclStatus(ncclCommDestroy(std::exchange(comm_, nullptr)), "ncclCommDestroy", nullptr);
}

absl::Status NcclEngine::failure() {
  const std::lock_guard lock(mutex_);
  return failure_;
}

void NcclEngine::set_timeout(absl::Duration timeout) {
  const std::lock_guard lock(mutex_);
  timeout_ = timeout;
}

}  // namespace bitshard::comm::internal
