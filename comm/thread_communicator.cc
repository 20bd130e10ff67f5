#include "comm/thread_communicator.h"

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "comm/internal/exchange.h"
#include "core/check.h"
#include "core/error.h"

namespace bitshard::comm {
namespace {

using internal::Exchange;

// One collective in the making. Its exchanges belong to the ranks' works, which outlive it or take
// them out.
struct Slot {
  explicit Slot(int world_size) : posted(static_cast<size_t>(world_size)) {}
  std::vector<const Exchange*> posted;
  int num_posted = 0;
  int num_released = 0;
  bool copying = false;
  bool done = false;
};

struct Deadline {
  explicit Deadline(absl::Duration timeout)
      : timeout(timeout),
        end(std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(timeout)) {}
  absl::Duration timeout;
  std::chrono::steady_clock::time_point end;
};

// What the ranks share. All members are guarded by `mutex`; the copying of a slot runs outside of
// it.
class Group {
 public:
  explicit Group(int world_size)
      : world_size_(world_size), left_(static_cast<size_t>(world_size)) {}

  int world_size() const { return world_size_; }

  absl::Status Post(int rank, const Exchange* exchange) {
    std::unique_lock lock(mutex_);
    if (!failure_.ok()) return failure_;
    Slot& slot = slots_.try_emplace(exchange->sequence, world_size_).first->second;
    slot.posted[static_cast<size_t>(rank)] = exchange;
    if (++slot.num_posted < world_size_) return absl::OkStatus();
    if (absl::Status match = CheckAll(slot); !match.ok()) {
      FailLocked(match, 0);
      return failure_;
    }
    slot.copying = true;
    lock.unlock();
    CopyAll(slot);
    lock.lock();
    slot.copying = false;
    slot.done = true;
    changed_.notify_all();
    return absl::OkStatus();
  }

  // When it returns, nobody reads or writes the rank's buffers of this exchange any more.
  absl::Status Wait(int rank, const Exchange& exchange, const Deadline& deadline) {
    std::unique_lock lock(mutex_);
    Slot& slot = slots_.at(exchange.sequence);
    while (!slot.done && (failure_.ok() || slot.copying)) {
      if (absl::Status left = LeftError(slot, exchange); !left.ok()) {
        FailLocked(left, internal::LowestPresent(Absent(slot), {}));
      } else if (slot.copying) {
        changed_.wait(lock);  // ends soon, whatever the other ranks do
      } else if (changed_.wait_until(lock, deadline.end) == std::cv_status::timeout && !slot.done &&
                 !slot.copying && failure_.ok()) {
        const std::vector<int> absent = Absent(slot);
        FailLocked(internal::DeadlineError(exchange, deadline.timeout, absent, {}, {}),
                   internal::LowestPresent(absent, {}));
      }
    }
    const absl::Status result = slot.done ? absl::OkStatus() : failure_;
    Release(rank, exchange.sequence);
    return result;
  }

  // For a work that is dropped: its buffers may go once this has returned.
  void Drop(int rank, const Exchange& exchange) {
    std::unique_lock lock(mutex_);
    Slot& slot = slots_.at(exchange.sequence);
    if (!slot.done) {
      FailLocked(core::AddContext(internal::DroppedError(exchange), absl::StrCat("rank ", rank)),
                 rank);
    }
    changed_.wait(lock, [&] { return !slot.copying; });
    Release(rank, exchange.sequence);
  }

  void Fail(int rank, const absl::Status& why) {
    const std::lock_guard lock(mutex_);
    FailLocked(core::AddContext(why, absl::StrCat("rank ", rank)), rank);
  }

  void Leave(int rank) {
    const std::lock_guard lock(mutex_);
    left_[static_cast<size_t>(rank)] = true;
    changed_.notify_all();
  }

  int reporting_rank() {
    const std::lock_guard lock(mutex_);
    return reporting_rank_;
  }

 private:
  void FailLocked(const absl::Status& why, int reporting_rank) {
    if (!failure_.ok()) return;
    failure_ = why;
    reporting_rank_ = reporting_rank;
    changed_.notify_all();
  }

  std::vector<int> Absent(const Slot& slot) const {
    std::vector<int> ranks;
    for (int r = 0; r < world_size_; ++r) {
      if (slot.posted[static_cast<size_t>(r)] == nullptr) ranks.push_back(r);
    }
    return ranks;
  }

  absl::Status LeftError(const Slot& slot, const Exchange& exchange) const {
    for (const int r : Absent(slot)) {
      if (left_[static_cast<size_t>(r)]) {
        return internal::LeftError(exchange.operation, exchange.name, r);
      }
    }
    return absl::OkStatus();
  }

  absl::Status CheckAll(const Slot& slot) const {
    for (int a = 0; a < world_size_; ++a) {
      for (int b = a + 1; b < world_size_; ++b) {
        const internal::Header theirs =
            internal::HeaderFor(*slot.posted[static_cast<size_t>(b)], a);
        absl::Status match =
            internal::CheckMatch(*slot.posted[static_cast<size_t>(a)], a, b, theirs);
        if (!match.ok()) return match;
      }
    }
    return absl::OkStatus();
  }

  void CopyAll(const Slot& slot) const {
    for (size_t from = 0; from < slot.posted.size(); ++from) {
      for (size_t to = 0; to < slot.posted.size(); ++to) {
        const std::span<const std::byte> source = slot.posted[from]->send[to];
        if (!source.empty())
          std::memcpy(slot.posted[to]->receive[from].data(), source.data(), source.size());
      }
    }
  }

  void Release(int rank, int64_t sequence) {
    Slot& slot = slots_.at(sequence);
    if (!slot.done) slot.posted[static_cast<size_t>(rank)] = nullptr;
    if (++slot.num_released == world_size_) slots_.erase(sequence);
  }

  const int world_size_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<int64_t, Slot> slots_;
  absl::Status failure_;
  int reporting_rank_ = 0;
  std::vector<bool> left_;
};

class ThreadWork : public Work {
 public:
  ThreadWork(std::shared_ptr<Group> group, int rank, Exchange exchange, absl::Duration timeout)
      : group_(std::move(group)), rank_(rank), exchange_(std::move(exchange)), deadline_(timeout) {}
  ~ThreadWork() override {
    if (posted_) group_->Drop(rank_, exchange_);
  }

  absl::Status Post() {
    absl::Status status = group_->Post(rank_, &exchange_);
    posted_ = status.ok();
    return status;
  }

  absl::Status Wait() override {
    if (posted_) result_ = group_->Wait(rank_, exchange_, deadline_);
    posted_ = false;
    return result_;
  }

 private:
  std::shared_ptr<Group> group_;
  const int rank_;
  const Exchange exchange_;
  const Deadline deadline_;
  bool posted_ = false;
  absl::Status result_;
};

class ThreadRank : public internal::ExchangeCommunicator {
 public:
  ThreadRank(std::shared_ptr<Group> group, int rank, absl::Duration timeout)
      : group_(std::move(group)), rank_(rank), timeout_(timeout) {}
  ~ThreadRank() override { group_->Leave(rank_); }

  int rank() const override { return rank_; }
  int world_size() const override { return group_->world_size(); }
  int local_rank() const override { return rank_; }
  int local_size() const override { return group_->world_size(); }
  std::string host_name() const override { return internal::HostName(); }
  void set_timeout(absl::Duration timeout) override { timeout_ = timeout; }
  void Fail(const absl::Status& why) override { group_->Fail(rank_, why); }
  int reporting_rank() const override { return group_->reporting_rank(); }
  absl::Status Finalize() override { return ExchangeFinalize(); }

 protected:
  absl::StatusOr<std::unique_ptr<Work>> Start(Exchange exchange) override {
    exchange.sequence = next_sequence_++;
    auto work = std::make_unique<ThreadWork>(group_, rank_, std::move(exchange), timeout_);
    if (absl::Status status = work->Post(); !status.ok()) return status;
    return work;
  }

 private:
  std::shared_ptr<Group> group_;
  const int rank_;
  absl::Duration timeout_;
  int64_t next_sequence_ = 0;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> ThreadCommunicator::Create(
    int world_size, const ThreadCommunicatorOptions& options) {
  BITSHARD_CHECK(world_size >= 1) << world_size;
  auto group = std::make_shared<Group>(world_size);
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int rank = 0; rank < world_size; ++rank) {
    ranks.push_back(std::make_unique<ThreadRank>(group, rank, options.timeout));
  }
  return ranks;
}

}  // namespace bitshard::comm
