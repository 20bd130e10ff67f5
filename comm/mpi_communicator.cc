#include "comm/mpi_communicator.h"

#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "comm/internal/exchange.h"
#include "comm/internal/launch_environment.h"
#include "comm/internal/mpi_engine.h"
#include "comm/internal/watchdog.h"
#include "comm/thread_communicator.h"
#include "core/check.h"
#include "core/error.h"
#include "core/status_macros.h"

namespace bitshard::comm {
namespace {

using internal::MpiStatus;
using internal::Watchdog;

constexpr int kPeerExitCode = static_cast<int>(core::ErrorKind::kPeer);

// MPI_Abort and MPI_Finalize take well below a second where nothing is broken. A job that ends in
// order has more time, for a machine that is busy.
constexpr absl::Duration kAbortLimit = absl::Seconds(10);
constexpr absl::Duration kFinalizeLimit = absl::Seconds(60);

// How long a rank that should not report an error waits for the one that should. That one ends the
// job as soon as it has spoken (mpirun sends SIGTERM a second later), so nobody waits that long
// unless it can't speak; then the others try one after another.
constexpr absl::Duration kReporterLimit = absl::Seconds(5);

bool MpiIsUp() {
  int initialized = 0;
  int finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  return initialized != 0 && finalized == 0;
}

class MpiWork : public Work {
 public:
  MpiWork(internal::MpiEngine* engine, std::shared_ptr<internal::MpiExchange> exchange)
      : engine_(engine), exchange_(std::move(exchange)) {}
  ~MpiWork() override { engine_->Drop(exchange_.get()); }
  absl::Status Wait() override { return engine_->Wait(exchange_.get()); }

 private:
  internal::MpiEngine* const engine_;
  const std::shared_ptr<internal::MpiExchange> exchange_;
};

class MpiRank : public internal::ExchangeCommunicator {
 public:
  MpiRank(MPI_Comm comm, const MpiCommunicatorOptions& options, bool owns_mpi)
      : engine_(std::make_unique<internal::MpiEngine>(internal::MpiEngineOptions{
            .comm = comm, .max_message_bytes = options.max_message_bytes})),
        rank_(engine_->rank()),
        world_size_(engine_->world_size()),
        owns_mpi_(owns_mpi),
        timeout_(options.timeout),
        host_name_(internal::HostName()) {}

  // A rank that drops a failed communicator and returns 0 would look to mpirun like one that ended
  // too early, and mpirun might end the job before the reporting rank has spoken.
  ~MpiRank() override {
    if (finalized_) return;
    absl::Status status = engine_->failure();
    if (status.ok()) status = Finalize();
    if (!status.ok())
      EndJob(this, status, absl::StrCat("bitshard: error: ", std::string(status.message())));
  }

  // Learns who is where. A collective.
  absl::Status FindHosts() {
    BITSHARD_ASSIGN_OR_RETURN(std::vector<std::string> names,
                              GatherStrings(host_name_, "host names"));
    for (int r = 0; r < world_size_; ++r) {
      if (names[static_cast<size_t>(r)] != host_name_) continue;
      local_rank_ += r < rank_ ? 1 : 0;
      ++local_size_;
    }
    engine_->set_host_names(std::move(names));
    return absl::OkStatus();
  }

  int rank() const override { return rank_; }
  int world_size() const override { return world_size_; }
  int local_rank() const override { return local_rank_; }
  int local_size() const override { return local_size_; }
  std::string host_name() const override { return host_name_; }
  void set_timeout(absl::Duration timeout) override { timeout_ = timeout; }
  void Fail(const absl::Status& why) override {
    if (!finalized_) engine_->Fail(core::AddContext(why, absl::StrCat("rank ", rank_)), rank_);
  }
  int reporting_rank() const override { return finalized_ ? 0 : engine_->reporting_rank(); }

  absl::Status Finalize() override {
    if (finalized_) return absl::OkStatus();
    BITSHARD_RETURN_IF_ERROR(ExchangeFinalize());
    // Every rank is here, so what follows ends soon.
    const Watchdog watchdog(kFinalizeLimit, "MPI_Finalize does not return", kPeerExitCode);
    finalized_ = true;
    engine_.reset();
    return owns_mpi_ ? MpiStatus(MPI_Finalize(), "MPI_Finalize") : absl::OkStatus();
  }

 protected:
  absl::StatusOr<std::unique_ptr<Work>> Start(internal::Exchange exchange) override {
    BITSHARD_CHECK(!finalized_) << exchange.name << " after Finalize";
    BITSHARD_ASSIGN_OR_RETURN(auto started, engine_->Start(std::move(exchange), timeout_));
    return std::make_unique<MpiWork>(engine_.get(), std::move(started));
  }

 private:
  std::unique_ptr<internal::MpiEngine> engine_;
  const int rank_;
  const int world_size_;
  const bool owns_mpi_;
  absl::Duration timeout_;
  const std::string host_name_;
  int local_rank_ = 0;
  int local_size_ = 0;
  bool finalized_ = false;
};

absl::Status InitializeMpi() {
  int granted = MPI_THREAD_SINGLE;
  if (MpiIsUp()) {
    BITSHARD_RETURN_IF_ERROR(MpiStatus(MPI_Query_thread(&granted), "MPI_Query_thread"));
  } else {
    BITSHARD_RETURN_IF_ERROR(MpiStatus(
        MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &granted), "MPI_Init_thread"));
  }
  if (granted >= MPI_THREAD_MULTIPLE) return absl::OkStatus();
  return core::ConfigError(absl::StrCat("MPI grants thread level ", granted,
                                        ", MPI_THREAD_MULTIPLE (", MPI_THREAD_MULTIPLE,
                                        ") is needed: communication runs in a thread of its own"));
}

// A communicator of our own, so that our messages never meet those of other users of MPI in the
// process.
absl::StatusOr<MPI_Comm> OwnComm(const internal::LaunchEnvironment& launch) {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (launch.size > 0 && launch.mpi && size != launch.size) {
    return core::ConfigError(absl::StrCat(
        launch.launcher, " has started ", launch.size, " processes, but MPI connects ", size,
        ": start the program with the mpirun of the MPI that it is built with "
        "(launch/mpirun.sh; installed: bitshard-mpirun)"));
  }
  MPI_Comm comm = MPI_COMM_NULL;
  BITSHARD_RETURN_IF_ERROR(MpiStatus(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "MPI_Comm_dup"));
  BITSHARD_RETURN_IF_ERROR(
      MpiStatus(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler"));
  return comm;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> MpiCommunicator::Create(
    const MpiCommunicatorOptions& options) {
  const bool already_up = MpiIsUp();
  internal::LaunchEnvironment launch;
  if (!already_up) {
    BITSHARD_ASSIGN_OR_RETURN(launch, internal::FindLauncher([](const char* name) {
                                const char* value = std::getenv(name);
                                return std::string(value == nullptr ? "" : value);
                              }));
    if (!launch.mpi)
      return std::move(ThreadCommunicator::Create(1, {.timeout = options.timeout}).front());
  }
  auto watchdog = std::make_unique<Watchdog>(
      options.timeout,
      absl::StrCat("error: MPI has not connected the ranks within ",
                   absl::FormatDuration(options.timeout), ": a rank has not started, or hangs"),
      kPeerExitCode);
  BITSHARD_RETURN_IF_ERROR(InitializeMpi());
  BITSHARD_ASSIGN_OR_RETURN(const MPI_Comm comm, OwnComm(launch));
  watchdog.reset();
  auto rank = std::make_unique<MpiRank>(comm, options, !already_up);
  BITSHARD_RETURN_IF_ERROR(rank->FindHosts());
  return rank;
}

void MpiAbort(int exit_code) {
  std::fflush(nullptr);
  const Watchdog watchdog(kAbortLimit, "MPI_Abort does not return", exit_code);
  if (MpiIsUp()) MPI_Abort(MPI_COMM_WORLD, exit_code);
  _exit(exit_code);
}

void EndJob(Communicator* comm, const absl::Status& status, const std::string& text) {
  BITSHARD_CHECK(!status.ok());
  int reporter = 0;
  if (!WasAgreed(status)) {
    comm->Fail(status);
    reporter = comm->reporting_rank();
  }
  if (comm->rank() != reporter) {
    // The program's own handler may only take a note, and this rank then speak as well.
    (void)std::signal(SIGTERM, SIG_DFL);
    absl::SleepFor(kReporterLimit + std::min(comm->rank(), 20) * absl::Milliseconds(200));
  }
  std::fprintf(stderr, "%s\n", text.c_str());
  MpiAbort(core::ExitCode(status));
}

}  // namespace bitshard::comm
