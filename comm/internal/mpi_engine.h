// The thread that owns all MPI traffic of a communicator: it carries out exchanges in the order
// they were started.
//
// For each exchange every rank sends every other one a header (comm/internal/exchange.h); data goes
// to a rank only once its header has come and matches. So ranks that disagree find out before
// anything is written, and a rank that is missing is known by name. A failure is told to all ranks
// by a message of its own kind, which is noticed in the middle of any exchange.
#ifndef BITSHARD_COMM_INTERNAL_MPI_ENGINE_H_
#define BITSHARD_COMM_INTERNAL_MPI_ENGINE_H_

#include <mpi.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "comm/internal/exchange.h"

namespace bitshard::comm::internal {

/// OK, or kPeer with the call and MPI's text.
absl::Status MpiStatus(int result, const char* call);

/// An exchange under way. Its members are the engine thread's until `done`.
struct MpiExchange {
  enum Kind { kHeaderOut, kHeaderIn, kData };
  struct Purpose {
    Kind kind;
    int peer;
  };
  /// A request to be filled by the next MPI call; valid until the next NewRequest.
  MPI_Request* NewRequest(Kind kind, int peer);

  Exchange exchange;
  absl::Duration timeout;
  bool begun = false;
  std::vector<Header> headers_out;  ///< By rank, as are the next three.
  std::vector<Header> headers_in;
  std::vector<bool> header_arrived;
  std::vector<int64_t> open_of;  ///< Data requests that are not complete.
  std::vector<MPI_Request> requests;
  std::vector<Purpose> purposes;  ///< Of each request.
  int64_t requests_open = 0;
  int64_t data_open = 0;

  // Guarded by the engine's mutex.
  std::chrono::steady_clock::time_point deadline;
  bool done = false;
  absl::Status result;
};

struct MpiEngineOptions {
  MPI_Comm comm;  ///< Of the engine alone, with MPI_ERRORS_RETURN.
  int64_t max_message_bytes = int64_t{1} << 30;
};

/// Threads: any, one at a time for Start and Wait of one communicator.
class MpiEngine {
 public:
  explicit MpiEngine(const MpiEngineOptions& options);
  /// Ends the thread. Exchanges must be done, or the engine must have failed.
  ~MpiEngine();

  int rank() const { return rank_; }
  int world_size() const { return world_size_; }
  /// Names in errors; set before the first exchange that may fail.
  void set_host_names(std::vector<std::string> names);

  absl::StatusOr<std::shared_ptr<MpiExchange>> Start(Exchange exchange, absl::Duration timeout);
  absl::Status Wait(MpiExchange* exchange);
  /// For a work that is destroyed: if its exchange is not done, fails locally, after which no MPI
  /// call can write to the exchange's buffers. Other ranks are told by the next Fail, or by the
  /// destructor.
  void Drop(MpiExchange* exchange);
  /// Fails locally if it has not failed yet, and tells the other ranks if they have not been told.
  void Fail(const absl::Status& why, int reporting_rank);
  absl::Status failure();
  int reporting_rank();

 private:
  using Clock = std::chrono::steady_clock;

  void Run();
  bool RunFailed(std::unique_lock<std::mutex>& lock);
  void TellFailure(const Header& notice);
  void FailLocked(const absl::Status& why, int reporting_rank);
  void ForgiveOwnPause();
  void FinishDone();
  void Sleep(std::unique_lock<std::mutex>& lock, bool progress);

  absl::Status PostNoticeReceive();
  absl::Status PollAll(bool* progress);
  absl::Status PollNotice();
  absl::Status Begin(MpiExchange* op);
  absl::Status Poll(MpiExchange* op, bool* progress);
  absl::Status OnHeader(MpiExchange* op, int peer);
  absl::Status LateError(const MpiExchange& op);

  const MPI_Comm comm_;
  const int64_t max_message_bytes_;
  int rank_ = 0;
  int world_size_ = 1;

  // The engine thread's alone.
  std::deque<std::shared_ptr<MpiExchange>> active_;
  std::vector<std::shared_ptr<MpiExchange>> abandoned_ops_;  // MPI still knows their headers.
  MPI_Request notice_request_ = MPI_REQUEST_NULL;
  Header notice_in_;
  std::vector<Header> notices_out_;
  Clock::time_point last_poll_;
  std::chrono::microseconds pause_{0};
  std::vector<int> completed_;  // Scratch of Poll, as is the next.
  std::vector<MPI_Status> statuses_;
  int found_by_ = 0;  // The rank that should report the error that a poll returns.

  std::mutex mutex_;  // Guards what follows.
  std::condition_variable changed_;
  std::deque<std::shared_ptr<MpiExchange>> queued_;
  std::vector<std::string> host_names_;
  int64_t next_sequence_ = 0;
  absl::Status failure_;
  absl::Status notice_;  // What other ranks are told.
  int reporting_rank_ = 0;
  bool tell_ = false;       // Other ranks should be told of the failure ...
  bool told_ = false;       // ... and have been.
  bool abandoned_ = false;  // The engine thread touches no exchange any more.
  int waiting_ = 0;         // Threads in Wait.
  bool stop_ = false;

  std::thread thread_;  // Last: it uses all of the above.
};

}  // namespace bitshard::comm::internal

#endif  // BITSHARD_COMM_INTERNAL_MPI_ENGINE_H_
