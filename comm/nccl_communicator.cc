#include "comm/nccl_communicator.h"

#include <cuda_runtime_api.h>
#include <nccl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "comm/internal/nccl_engine.h"
#include "comm/internal/nccl_self_test.h"
#include "comm/internal/nccl_status.h"
#include "comm/internal/watchdog.h"
#include "core/check.h"
#include "core/cuda_status.h"
#include "core/error.h"
#include "core/status_macros.h"

namespace bitshard::comm {
namespace {

using internal::NcclStatus;

constexpr absl::Duration kPollPause = absl::Milliseconds(1);

class NcclWork : public Work {
 public:
  NcclWork(internal::NcclEngine* engine, std::shared_ptr<internal::NcclOperation> operation)
      : engine_(engine), operation_(std::move(operation)) {}
  absl::Status Wait() override { return engine_->Wait(operation_.get()); }

 private:
  internal::NcclEngine* const engine_;
  const std::shared_ptr<internal::NcclOperation> operation_;
};

std::string Describe(const char* operation, const std::string& name) {
  return absl::StrCat(operation, " \"", core::Escaped(name), "\"");
}

class NcclRank : public DeviceCommunicator {
 public:
  NcclRank(int rank, int world_size, const internal::NcclEngineOptions& options)
      : rank_(rank), world_size_(world_size), engine_(options) {}

  int rank() const override { return rank_; }
  int world_size() const override { return world_size_; }
  int64_t bytes_sent() const override { return bytes_sent_.load(std::memory_order_relaxed); }
  void set_timeout(absl::Duration timeout) override { engine_.set_timeout(timeout); }
  absl::Status status() override { return engine_.failure(); }
  absl::Status Finalize() override { return engine_.Finalize(); }

  absl::StatusOr<std::unique_ptr<Work>> StartAllToAll(
      const std::vector<std::span<const std::byte>>& send,
      const std::vector<std::span<std::byte>>& receive, const std::string& name,
      cudaStream_t stream) override {
    const std::string call = Describe("all-to-all", name);
    const size_t world = static_cast<size_t>(world_size_);
    const size_t self = static_cast<size_t>(rank_);
    BITSHARD_CHECK(send.size() == world && receive.size() == world)
        << call << ": " << send.size() << " and " << receive.size() << " entries for " << world;
    BITSHARD_CHECK(send[self].size() == receive[self].size()) << call << ": own entry";
    int64_t bytes = 0;
    for (size_t r = 0; r < world; ++r) {
      if (r != self) bytes += static_cast<int64_t>(send[r].size());
    }
    if (!send[self].empty() && send[self].data() != receive[self].data()) {
      BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(
          cudaMemcpyAsync(receive[self].data(), send[self].data(), send[self].size(),
                          cudaMemcpyDeviceToDevice, stream)));
    }
    const auto issue = [&](ncclComm_t comm) {
      ncclResult_t result = ncclSuccess;
      for (size_t r = 0; r < world && result == ncclSuccess; ++r) {
        const int peer = static_cast<int>(r);
        if (r != self && !send[r].empty())
          result = ncclSend(send[r].data(), send[r].size(), ncclUint8, peer, comm, stream);
        if (r != self && !receive[r].empty() && result == ncclSuccess)
          result = ncclRecv(receive[r].data(), receive[r].size(), ncclUint8, peer, comm, stream);
      }
      return result;
    };
    return Start(call, issue, stream, bytes);
  }

  absl::StatusOr<std::unique_ptr<Work>> StartAllGather(std::span<const std::byte> mine,
                                                       std::span<std::byte> gathered,
                                                       const std::string& name,
                                                       cudaStream_t stream) override {
    const std::string call = Describe("all-gather", name);
    BITSHARD_CHECK(gathered.size() == mine.size() * static_cast<size_t>(world_size_))
        << call << ": " << gathered.size() << " bytes for " << mine.size() << " of each rank";
    const auto issue = [&](ncclComm_t comm) {
      return ncclAllGather(mine.data(), gathered.data(), mine.size(), ncclUint8, comm, stream);
    };
    return Start(call, issue, stream, static_cast<int64_t>(mine.size()) * (world_size_ - 1));
  }

  // Sum, never ncclAvg: on one rank that leaves out the last elements (nccl issue 1950), and who
  // needs a mean scales where the sum is used.
  absl::StatusOr<std::unique_ptr<Work>> StartReduceScatter(std::span<const float> terms,
                                                           std::span<float> sum,
                                                           const std::string& name,
                                                           cudaStream_t stream) override {
    const std::string call = Describe("reduce-scatter", name);
    BITSHARD_CHECK(terms.size() == sum.size() * static_cast<size_t>(world_size_))
        << call << ": " << terms.size() << " terms for " << sum.size() << " sums";
    const auto issue = [&](ncclComm_t comm) {
      return ncclReduceScatter(terms.data(), sum.data(), sum.size(), ncclFloat32, ncclSum, comm,
                               stream);
    };
    const int64_t bytes = static_cast<int64_t>(sum.size_bytes()) * (world_size_ - 1);
    return Start(call, issue, stream, bytes);
  }

 private:
  absl::StatusOr<std::unique_ptr<Work>> Start(const std::string& call,
                                              const std::function<ncclResult_t(ncclComm_t)>& issue,
                                              cudaStream_t stream, int64_t bytes) {
    BITSHARD_ASSIGN_OR_RETURN(auto operation, engine_.Start(call, issue, stream));
    bytes_sent_.fetch_add(bytes, std::memory_order_relaxed);
    return std::make_unique<NcclWork>(&engine_, std::move(operation));
  }

  const int rank_;
  const int world_size_;
  std::atomic<int64_t> bytes_sent_{0};
  internal::NcclEngine engine_;
};

absl::Status CheckVersions(Communicator* host) {
  int version = 0;
  BITSHARD_RETURN_IF_ERROR(NcclStatus(ncclGetVersion(&version), "ncclGetVersion", nullptr));
  BITSHARD_ASSIGN_OR_RETURN(const std::vector<int64_t> versions,
                            host->GatherInt64(version, "NCCL's version"));
  for (size_t r = 1; r < versions.size(); ++r) {
    if (versions[r] == versions[0]) continue;
    return core::ConfigError(absl::StrCat("rank 0 has version ", versions[0], " of NCCL, rank ", r,
                                          " has ", versions[r], ": install the same on all hosts"));
  }
  return absl::OkStatus();
}

// The same text for the same GPU only. Parts of a GPU (MIG) have one bus id, so the UUID too.
absl::StatusOr<std::string> NameOfGpu(const std::string& host_name, int device) {
  char bus_id[32] = {};
  BITSHARD_RETURN_IF_ERROR(
      BITSHARD_CUDA_STATUS(cudaDeviceGetPCIBusId(bus_id, sizeof bus_id, device)));
  cudaDeviceProp properties{};
  BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(cudaGetDeviceProperties(&properties, device)));
  const std::string uuid(properties.uuid.bytes, sizeof properties.uuid.bytes);
  return absl::StrCat(bus_id, " (UUID ", absl::BytesToHexString(uuid), ") of host ", host_name);
}

absl::Status CheckGpus(Communicator* host, int device) {
  const absl::StatusOr<std::string> mine = NameOfGpu(host->host_name(), device);
  BITSHARD_RETURN_IF_ERROR(host->AgreeOnStatus(mine.status()));
  BITSHARD_ASSIGN_OR_RETURN(const std::vector<std::string> gpus,
                            host->GatherStrings(*mine, "the GPUs of the ranks"));
  std::map<std::string, size_t> rank_of;
  for (size_t r = 0; r < gpus.size(); ++r) {
    const auto [first, is_new] = rank_of.emplace(gpus[r], r);
    if (is_new) continue;
    return core::ConfigError(absl::StrCat(
        "ranks ", first->second, " and ", r, " both use GPU ", gpus[r],
        ": start no more ranks on a host than it has GPUs, and let each see all of them (see "
        "CUDA_VISIBLE_DEVICES) and take that of its local rank"));
  }
  return absl::OkStatus();
}

absl::StatusOr<ncclUniqueId> ShareId(Communicator* host) {
  ncclUniqueId id{};
  absl::Status mine;
  if (host->rank() == 0) mine = NcclStatus(ncclGetUniqueId(&id), "ncclGetUniqueId", nullptr);
  BITSHARD_RETURN_IF_ERROR(host->AgreeOnStatus(mine));
  const std::span<ncclUniqueId> one(&id, 1);
  BITSHARD_RETURN_IF_ERROR(host->Broadcast(std::as_writable_bytes(one), 0, "NCCL's id"));
  return id;
}

// The same text on all ranks.
absl::Status InitError(Communicator* host, const std::vector<int64_t>& states,
                       const NcclCommunicatorOptions& options) {
  std::vector<std::string> late;
  std::vector<std::string> failed;
  for (size_t r = 0; r < states.size(); ++r) {
    const auto state = static_cast<ncclResult_t>(states[r]);
    if (state == ncclInProgress) late.push_back(absl::StrCat(r));
    if (state != ncclInProgress && state != ncclSuccess)
      failed.push_back(absl::StrCat("rank ", r, ": ", ncclGetErrorString(state)));
  }
  std::string text =
      absl::StrCat("NCCL does not connect the ", host->world_size(),
                   " ranks: ", absl::StrJoin(failed, "; "), failed.empty() ? "" : "; ");
  if (!late.empty()) {
    absl::StrAppend(&text, late.size() == 1 ? "rank " : "ranks ", absl::StrJoin(late, ", "),
                    " not ready within ", absl::FormatDuration(options.init_timeout), "; ");
  }
  return core::PeerError(absl::StrCat(
      text, "look at NCCL_SOCKET_IFNAME and the network, and set NCCL_DEBUG=INFO to see more"));
}

// The communicator is the caller's when the result is OK.
absl::Status Init(const NcclCommunicatorOptions& options, const ncclUniqueId& id,
                  ncclComm_t* comm) {
  Communicator* host = options.host;
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclResult_t state = ncclCommInitRankConfig(comm, host->world_size(), id, host->rank(), &config);
  const auto deadline =
      std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(options.init_timeout);
  while (state == ncclInProgress && std::chrono::steady_clock::now() < deadline) {
    const ncclResult_t asked = ncclCommGetAsyncError(*comm, &state);
    if (asked != ncclSuccess) state = asked;
    if (state == ncclInProgress) absl::SleepFor(kPollPause);
  }
  const absl::StatusOr<std::vector<int64_t>> states =
      host->GatherInt64(static_cast<int64_t>(state), "NCCL's initialisation");
  absl::Status result = states.status();
  if (states.ok()) {
    const bool all =
        std::all_of(states->begin(), states->end(), [](int64_t one) { return one == ncclSuccess; });
    if (all) return absl::OkStatus();
    result = InitError(host, *states, options);
  }
  if (*comm != nullptr) {
    const internal::Watchdog watchdog(
        options.abort_limit,
        absl::StrCat("ncclCommAbort does not return; aborted for: ", std::string(result.message())),
        static_cast<int>(core::ErrorKind::kPeer));
    (void)ncclCommAbort(*comm);
  }
  return result;
}

absl::Status TestAll(DeviceCommunicator* comm, const NcclCommunicatorOptions& options) {
  if (options.self_test_elems.empty()) return absl::OkStatus();
  const auto [least, most] =
      std::minmax_element(options.self_test_elems.begin(), options.self_test_elems.end());
  BITSHARD_CHECK(*least >= 2) << *least;
  auto test = std::make_unique<internal::SelfTest>();
  BITSHARD_RETURN_IF_ERROR(options.host->AgreeOnStatus(test->Allocate(comm->world_size(), *most)));
  absl::Status result;
  for (const int64_t elems : options.self_test_elems) {
    absl::Status status = test->Run(comm, elems);
    if (result.ok()) result = std::move(status);
  }
  test.reset();  // Before any rank can go on.
  return options.host->AgreeOnStatus(result);
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceCommunicator>> NcclCommunicator::Create(
    const NcclCommunicatorOptions& options) {
  Communicator* host = options.host;
  BITSHARD_CHECK(host != nullptr);
  BITSHARD_RETURN_IF_ERROR(
      host->AgreeOnStatus(BITSHARD_CUDA_STATUS(cudaSetDevice(options.device))));
  BITSHARD_RETURN_IF_ERROR(CheckGpus(host, options.device));
  BITSHARD_RETURN_IF_ERROR(CheckVersions(host));
  BITSHARD_ASSIGN_OR_RETURN(const ncclUniqueId id, ShareId(host));
  ncclComm_t comm = nullptr;
  BITSHARD_RETURN_IF_ERROR(Init(options, id, &comm));
  auto rank =
      std::make_unique<NcclRank>(host->rank(), host->world_size(),
                                 internal::NcclEngineOptions{.comm = comm,
                                                             .rank = host->rank(),
                                                             .device = options.device,
                                                             .timeout = options.timeout,
                                                             .abort_limit = options.abort_limit});
  BITSHARD_RETURN_IF_ERROR(TestAll(rank.get(), options));
  return rank;
}

std::vector<std::string> NcclEnvironment() {
  std::vector<std::string> variables;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    if (absl::StartsWith(*entry, "NCCL_")) variables.push_back(core::Escaped(*entry));
  }
  std::sort(variables.begin(), variables.end());
  return variables;
}

}  // namespace bitshard::comm
