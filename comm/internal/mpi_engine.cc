#include "comm/internal/mpi_engine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/error.h"
#include "core/status_macros.h"

namespace bitshard::comm::internal {
namespace {

using std::chrono::microseconds;
using std::chrono::seconds;

// Exchanges that are under way at a time; later ones wait, which bounds the number of requests.
constexpr size_t kMostActive = 4;

constexpr int kHeaderTag = 1;
constexpr int kNoticeTag = 2;
// Data of different exchanges may overtake each other. MPI guarantees tags up to 32767.
constexpr int kFirstDataTag = 1000;
constexpr int kDataTags = 31000;

// How long the engine sleeps between polls, at most: ranks share cores with their own computing.
// Short while data moves, longer while somebody waits for other ranks to arrive, still longer while
// nobody does. Without any exchange polling only lets MPI finish what it has buffered.
constexpr microseconds kShortestPause{10};
constexpr microseconds kPauseMoving{100};
constexpr microseconds kPauseWaiting{250};
constexpr microseconds kPauseComputing{1000};
constexpr microseconds kPauseIdle{10000};

// A longer gap between polls means that this process was stopped: others are not to blame for that
// time.
constexpr seconds kOwnPause{2};

// How long Wait gives the engine to report a passed deadline, before it takes MPI itself to hang.
constexpr seconds kGrace{10};

constexpr seconds kMostToTell{2};

}  // namespace

absl::Status MpiStatus(int result, const char* call) {
  if (result == MPI_SUCCESS) return absl::OkStatus();
  char text[MPI_MAX_ERROR_STRING + 1] = {};
  int length = 0;
  MPI_Error_string(result, text, &length);
  return core::PeerError(absl::StrCat(call, ": ", text));
}

#define BITSHARD_MPI(call) BITSHARD_RETURN_IF_ERROR(MpiStatus(call, #call))

MpiEngine::MpiEngine(const MpiEngineOptions& options)
    : comm_(options.comm), max_message_bytes_(options.max_message_bytes) {
  BITSHARD_CHECK(max_message_bytes_ >= 1 && max_message_bytes_ <= int64_t{1} << 30)
      << max_message_bytes_;
  MPI_Comm_rank(comm_, &rank_);
  MPI_Comm_size(comm_, &world_size_);
  thread_ = std::thread([this] { Run(); });
}

MpiEngine::~MpiEngine() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    if (!failure_.ok()) tell_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void MpiEngine::set_host_names(std::vector<std::string> names) {
  const std::lock_guard lock(mutex_);
  host_names_ = std::move(names);
}

absl::StatusOr<std::shared_ptr<MpiExchange>> MpiEngine::Start(Exchange exchange,
                                                              absl::Duration timeout) {
  auto op = std::make_shared<MpiExchange>();
  op->exchange = std::move(exchange);
  op->timeout = timeout;
  op->deadline = Clock::now() + absl::ToChronoNanoseconds(timeout);
  const std::lock_guard lock(mutex_);
  if (!failure_.ok()) return failure_;
  op->exchange.sequence = next_sequence_++;
  queued_.push_back(op);
  changed_.notify_all();
  return op;
}

absl::Status MpiEngine::Wait(MpiExchange* op) {
  std::unique_lock lock(mutex_);
  ++waiting_;
  changed_.notify_all();
  const auto done = [op] { return op->done; };
  while (!changed_.wait_until(lock, op->deadline, done)) {
    if (changed_.wait_for(lock, kGrace, done) || Clock::now() < op->deadline) continue;
    --waiting_;
    return core::PeerError(absl::StrCat(Describe(op->exchange.operation, op->exchange.name),
                                        ": MPI itself does not return within ",
                                        absl::FormatDuration(op->timeout)));
  }
  --waiting_;
  return op->result;
}

void MpiEngine::Drop(MpiExchange* op) {
  std::unique_lock lock(mutex_);
  if (op->done) return;
  FailLocked(core::AddContext(DroppedError(op->exchange), absl::StrCat("rank ", rank_)), rank_);
  changed_.wait_for(lock, kGrace, [this] { return abandoned_; });
}

void MpiEngine::Fail(const absl::Status& why, int reporting_rank) {
  std::unique_lock lock(mutex_);
  FailLocked(why, reporting_rank);
  if (told_ || tell_) return;
  notice_ = why;
  tell_ = true;
  changed_.notify_all();
  changed_.wait_for(lock, kMostToTell, [this] { return told_; });
}

absl::Status MpiEngine::failure() {
  const std::lock_guard lock(mutex_);
  return failure_;
}

int MpiEngine::reporting_rank() {
  const std::lock_guard lock(mutex_);
  return reporting_rank_;
}

void MpiEngine::FailLocked(const absl::Status& why, int reporting_rank) {
  if (!failure_.ok()) return;
  failure_ = why;
  notice_ = why;
  reporting_rank_ = reporting_rank;
  changed_.notify_all();
}

void MpiEngine::Run() {
  last_poll_ = Clock::now();
  absl::Status status = PostNoticeReceive();
  std::unique_lock lock(mutex_);
  while (true) {
    if (!status.ok()) {
      FailLocked(status, found_by_);
      tell_ = true;
      status = absl::OkStatus();
    }
    if (!failure_.ok()) {
      if (RunFailed(lock)) return;
      continue;
    }
    if (stop_ && queued_.empty() && active_.empty()) break;
    ForgiveOwnPause();
    while (active_.size() < kMostActive && !queued_.empty()) {
      active_.push_back(queued_.front());
      queued_.pop_front();
    }
    lock.unlock();
    bool progress = false;
    status = PollAll(&progress);
    lock.lock();
    FinishDone();
    if (status.ok()) Sleep(lock, progress);
  }
  lock.unlock();
  MPI_Cancel(&notice_request_);
  MPI_Wait(&notice_request_, MPI_STATUS_IGNORE);
}

// After a failure nothing but the notices is sent, and no request is tested any more: testing one
// might write into buffers whose owners have gone. Returns true at the end of the thread.
bool MpiEngine::RunFailed(std::unique_lock<std::mutex>& lock) {
  if (tell_ && !told_) {
    // Others hear of it before this rank's callers do, who may end the job at once.
    const Header notice = FailureHeader(notice_, reporting_rank_);
    lock.unlock();
    TellFailure(notice);
    lock.lock();
    told_ = true;
  }
  for (std::deque<std::shared_ptr<MpiExchange>>* ops : {&active_, &queued_}) {
    for (const std::shared_ptr<MpiExchange>& op : *ops) {
      op->result = failure_;
      op->done = true;
    }
    abandoned_ops_.insert(abandoned_ops_.end(), ops->begin(), ops->end());
    ops->clear();
  }
  abandoned_ = true;
  changed_.notify_all();
  changed_.wait(lock, [this] { return stop_ || (tell_ && !told_); });
  return stop_ && (told_ || !tell_);
}

void MpiEngine::TellFailure(const Header& notice) {
  notices_out_.assign(static_cast<size_t>(world_size_), notice);
  for (int peer = 0; peer < world_size_; ++peer) {
    if (peer == rank_) continue;
    MPI_Request request = MPI_REQUEST_NULL;  // Small enough to be sent at once; never waited for.
    MPI_Isend(&notices_out_[static_cast<size_t>(peer)], sizeof(Header), MPI_BYTE, peer, kNoticeTag,
              comm_, &request);
  }
}

void MpiEngine::ForgiveOwnPause() {
  const Clock::time_point now = Clock::now();
  const auto gap = now - last_poll_;
  last_poll_ = now;
  if (gap < kOwnPause) return;
  for (const auto* ops : {&active_, &queued_}) {
    for (const std::shared_ptr<MpiExchange>& op : *ops) op->deadline += gap;
  }
}

void MpiEngine::FinishDone() {
  const auto finished = [](const std::shared_ptr<MpiExchange>& op) {
    op->done = op->begun && op->requests_open == 0;
    return op->done;
  };
  if (std::erase_if(active_, finished) > 0) changed_.notify_all();
}

void MpiEngine::Sleep(std::unique_lock<std::mutex>& lock, bool progress) {
  if (progress) {
    pause_ = microseconds(0);
    return;
  }
  microseconds longest = kPauseIdle;
  if (!active_.empty()) {
    const bool moving = std::any_of(active_.begin(), active_.end(),
                                    [](const auto& op) { return op->data_open > 0; });
    longest = moving ? kPauseMoving : waiting_ > 0 ? kPauseWaiting : kPauseComputing;
  }
  pause_ = std::clamp(pause_ * 2, kShortestPause, longest);
  if (queued_.empty() || active_.size() == kMostActive) changed_.wait_for(lock, pause_);
}

absl::Status MpiEngine::PollAll(bool* progress) {
  BITSHARD_RETURN_IF_ERROR(PollNotice());
  for (const std::shared_ptr<MpiExchange>& op : active_) {
    if (!op->begun) {
      BITSHARD_RETURN_IF_ERROR(Begin(op.get()));
      *progress = true;
    }
    BITSHARD_RETURN_IF_ERROR(Poll(op.get(), progress));
  }
  return absl::OkStatus();
}

absl::Status MpiEngine::PostNoticeReceive() {
  found_by_ = rank_;
  BITSHARD_MPI(MPI_Irecv(&notice_in_, sizeof(Header), MPI_BYTE, MPI_ANY_SOURCE, kNoticeTag, comm_,
                         &notice_request_));
  return absl::OkStatus();
}

absl::Status MpiEngine::PollNotice() {
  int arrived = 0;
  found_by_ = rank_;
  BITSHARD_MPI(MPI_Test(&notice_request_, &arrived, MPI_STATUS_IGNORE));
  if (arrived == 0) return absl::OkStatus();
  found_by_ = notice_in_.reporting_rank;
  const std::lock_guard lock(mutex_);
  told_ = true;  // by the rank that sent this
  return ErrorOf(notice_in_);
}

absl::Status MpiEngine::Begin(MpiExchange* op) {
  const size_t world = static_cast<size_t>(world_size_);
  op->begun = true;
  op->headers_out.resize(world);
  op->headers_in.resize(world);
  op->header_arrived.resize(world);
  op->open_of.resize(world);
  // Starts with the next rank, so that not everybody sends to rank 0 first.
  for (int i = 1; i < world_size_; ++i) {
    const int peer = (rank_ + i) % world_size_;
    Header* const out = &op->headers_out[static_cast<size_t>(peer)];
    *out = HeaderFor(op->exchange, peer);
    BITSHARD_MPI(MPI_Irecv(&op->headers_in[static_cast<size_t>(peer)], sizeof(Header), MPI_BYTE,
                           peer, kHeaderTag, comm_, op->NewRequest(MpiExchange::kHeaderIn, peer)));
    BITSHARD_MPI(MPI_Isend(out, sizeof(Header), MPI_BYTE, peer, kHeaderTag, comm_,
                           op->NewRequest(MpiExchange::kHeaderOut, peer)));
  }
  return absl::OkStatus();
}

absl::Status MpiEngine::Poll(MpiExchange* op, bool* progress) {
  if (op->requests_open == 0) return absl::OkStatus();
  completed_.resize(op->requests.size());
  statuses_.resize(op->requests.size());
  int count = 0;
  const int result = MPI_Testsome(static_cast<int>(op->requests.size()), op->requests.data(),
                                  &count, completed_.data(), statuses_.data());
  if (result != MPI_SUCCESS && result != MPI_ERR_IN_STATUS)
    BITSHARD_RETURN_IF_ERROR(MpiStatus(result, "MPI_Testsome"));
  for (int i = 0; i < count; ++i) {
    const MpiExchange::Purpose purpose =
        op->purposes[static_cast<size_t>(completed_[static_cast<size_t>(i)])];
    if (result == MPI_ERR_IN_STATUS) {
      BITSHARD_RETURN_IF_ERROR(
          core::AddContext(MpiStatus(statuses_[static_cast<size_t>(i)].MPI_ERROR,
                                     absl::StrCat("rank ", purpose.peer).c_str()),
                           Describe(op->exchange.operation, op->exchange.name)));
    }
    --op->requests_open;
    *progress = true;
    if (purpose.kind == MpiExchange::kHeaderIn)
      BITSHARD_RETURN_IF_ERROR(OnHeader(op, purpose.peer));
    if (purpose.kind == MpiExchange::kData) {
      --op->data_open;
      --op->open_of[static_cast<size_t>(purpose.peer)];
    }
  }
  if (op->requests_open > 0 && last_poll_ > op->deadline) return LateError(*op);
  return absl::OkStatus();
}

absl::Status MpiEngine::OnHeader(MpiExchange* op, int peer) {
  const size_t index = static_cast<size_t>(peer);
  const Header& header = op->headers_in[index];
  op->header_arrived[index] = true;
  // Several pairs of ranks find the same mismatch, and must choose the same rank to report it.
  const bool peer_left = header.operation == Operation::kFinalize;
  const bool left = op->exchange.operation == Operation::kFinalize;
  found_by_ = peer_left ? LowestPresent({peer}, {}) : left ? LowestPresent({rank_}, {}) : 0;
  BITSHARD_RETURN_IF_ERROR(CheckMatch(op->exchange, rank_, peer, header));

  found_by_ = rank_;
  const int tag = kFirstDataTag + static_cast<int>(op->exchange.sequence % kDataTags);
  const std::span<std::byte> in = op->exchange.receive[index];
  for (size_t at = 0; at < in.size(); at += static_cast<size_t>(max_message_bytes_)) {
    const int bytes =
        static_cast<int>(std::min(in.size() - at, static_cast<size_t>(max_message_bytes_)));
    BITSHARD_MPI(MPI_Irecv(in.data() + at, bytes, MPI_BYTE, peer, tag, comm_,
                           op->NewRequest(MpiExchange::kData, peer)));
  }
  const std::span<const std::byte> out = op->exchange.send[index];
  for (size_t at = 0; at < out.size(); at += static_cast<size_t>(max_message_bytes_)) {
    const int bytes =
        static_cast<int>(std::min(out.size() - at, static_cast<size_t>(max_message_bytes_)));
    BITSHARD_MPI(MPI_Isend(out.data() + at, bytes, MPI_BYTE, peer, tag, comm_,
                           op->NewRequest(MpiExchange::kData, peer)));
  }
  return absl::OkStatus();
}

absl::Status MpiEngine::LateError(const MpiExchange& op) {
  std::vector<int> absent;
  std::vector<int> stalled;
  for (int peer = 0; peer < world_size_; ++peer) {
    const size_t index = static_cast<size_t>(peer);
    if (peer == rank_) continue;
    if (!op.header_arrived[index]) {
      absent.push_back(peer);
    } else if (op.open_of[index] > 0) {
      stalled.push_back(peer);
    }
  }
  found_by_ = LowestPresent(absent, stalled);
  const std::lock_guard lock(mutex_);
  return DeadlineError(op.exchange, op.timeout, absent, stalled, host_names_);
}

MPI_Request* MpiExchange::NewRequest(Kind kind, int peer) {
  requests.push_back(MPI_REQUEST_NULL);
  purposes.push_back({kind, peer});
  ++requests_open;
  if (kind == kData) {
    ++data_open;
    ++open_of[static_cast<size_t>(peer)];
  }
  return &requests.back();
}

#undef BITSHARD_MPI

}  // namespace bitshard::comm::internal
