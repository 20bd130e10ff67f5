#include "comm/internal/exchange.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/check.h"
#include "core/error.h"
#include "core/hash.h"
#include "core/status_macros.h"

namespace bitshard::comm::internal {
namespace {

constexpr size_t kTextBytes = sizeof(Header::text);

void SetText(const std::string& text, Header* header) {
  const size_t bytes = std::min(text.size(), kTextBytes - 1);
  std::memcpy(header->text, text.data(), bytes);
}

std::string TextOf(const Header& header) {
  return std::string(header.text, strnlen(header.text, kTextBytes));
}

std::string OperationName(Operation operation) {
  switch (operation) {
    case Operation::kAllToAll:
      return "all-to-all";
    case Operation::kAllGather:
      return "all-gather";
    case Operation::kBroadcast:
      return "broadcast";
    case Operation::kFinalize:
      return "finalize";
    case Operation::kFailure:
      return "failure";
  }
  return absl::StrCat("operation ", static_cast<int>(operation));
}

std::string RankList(const std::vector<int>& ranks, const std::vector<std::string>& host_names) {
  constexpr size_t kMost = 8;
  std::vector<std::string> parts;
  for (size_t i = 0; i < std::min(ranks.size(), kMost); ++i) {
    const size_t rank = static_cast<size_t>(ranks[i]);
    parts.push_back(host_names.size() > rank ? absl::StrCat(rank, " on ", host_names[rank])
                                             : absl::StrCat(rank));
  }
  if (ranks.size() > kMost) parts.push_back(absl::StrCat(ranks.size() - kMost, " more"));
  return absl::StrCat(ranks.size() == 1 ? "rank " : "ranks ", absl::StrJoin(parts, ", "));
}

}  // namespace

std::string Describe(Operation operation, const std::string& name) {
  return absl::StrCat(OperationName(operation), " \"", core::Escaped(name), "\"");
}

Header HeaderFor(const Exchange& exchange, int peer) {
  const size_t index = static_cast<size_t>(peer);
  Header header;
  header.operation = exchange.operation;
  header.sequence = exchange.sequence;
  header.bytes_to_peer = static_cast<int64_t>(exchange.send[index].size());
  header.bytes_from_peer = static_cast<int64_t>(exchange.receive[index].size());
  header.name_hash = core::Hash64(exchange.name.data(), exchange.name.size());
  SetText(exchange.name, &header);
  return header;
}

Header FailureHeader(const absl::Status& error, int reporting_rank) {
  Header header;
  header.operation = Operation::kFailure;
  header.kind = static_cast<int32_t>(core::KindOf(error));
  header.reporting_rank = reporting_rank;
  SetText(std::string(error.message()), &header);
  return header;
}

absl::Status ErrorOf(const Header& failure) {
  return core::MakeError(static_cast<core::ErrorKind>(failure.kind), TextOf(failure));
}

absl::Status CheckMatch(const Exchange& mine, int self, int peer, const Header& theirs) {
  if (theirs.magic != Header::kMagic) {
    return absl::InternalError(absl::StrCat("rank ", peer, " runs another version of the program"));
  }
  const Header expected = HeaderFor(mine, peer);
  const bool same_call = theirs.operation == expected.operation &&
                         theirs.sequence == expected.sequence &&
                         theirs.name_hash == expected.name_hash;
  const std::string their_name = TextOf(theirs);
  if (!same_call && theirs.operation == Operation::kFinalize)
    return LeftError(mine.operation, mine.name, peer);
  if (!same_call && mine.operation == Operation::kFinalize)
    return LeftError(theirs.operation, their_name, self);
  const std::string call = Describe(mine.operation, mine.name);
  if (!same_call) {
    return absl::InternalError(
        absl::StrCat("ranks have taken different ways: rank ", self, " calls ", call,
                     " as its collective number ", mine.sequence, ", rank ", peer, " calls ",
                     Describe(theirs.operation, their_name), " as number ", theirs.sequence));
  }
  const auto difference = [&](int from, int64_t sent, int to, int64_t wanted) {
    return absl::InternalError(absl::StrCat(call, ": rank ", from, " sends ", sent,
                                            " bytes to rank ", to, ", which expects ", wanted,
                                            ": the ranks differ in model, data or configuration"));
  };
  if (theirs.bytes_to_peer != expected.bytes_from_peer) {
    return difference(peer, theirs.bytes_to_peer, self, expected.bytes_from_peer);
  }
  if (theirs.bytes_from_peer != expected.bytes_to_peer) {
    return difference(self, expected.bytes_to_peer, peer, theirs.bytes_from_peer);
  }
  return absl::OkStatus();
}

absl::Status LeftError(Operation operation, const std::string& name, int rank) {
  return core::PeerError(absl::StrCat(Describe(operation, name), ": rank ", rank,
                                      " has left: it ended its run before this collective"));
}

absl::Status DroppedError(const Exchange& exchange) {
  return absl::InternalError(absl::StrCat(Describe(exchange.operation, exchange.name),
                                          " was dropped before it was complete"));
}

absl::Status DeadlineError(const Exchange& exchange, absl::Duration timeout,
                           const std::vector<int>& absent, const std::vector<int>& stalled,
                           const std::vector<std::string>& host_names) {
  std::vector<std::string> parts;
  if (!absent.empty()) {
    parts.push_back(absl::StrCat(RankList(absent, host_names), " did not arrive"));
  }
  if (!stalled.empty()) {
    parts.push_back(
        absl::StrCat(RankList(stalled, host_names), " arrived but stopped sending or receiving"));
  }
  return core::PeerError(
      absl::StrCat(Describe(exchange.operation, exchange.name), ": ", absl::StrJoin(parts, "; "),
                   " within ", absl::FormatDuration(timeout),
                   ": hung, stopped or much slower than the others; if it only needs longer, "
                   "raise comm.timeout"));
}

int LowestPresent(const std::vector<int>& absent, const std::vector<int>& stalled) {
  const auto has = [](const std::vector<int>& ranks, int rank) {
    return std::find(ranks.begin(), ranks.end(), rank) != ranks.end();
  };
  int rank = 0;
  while (has(absent, rank) || has(stalled, rank)) ++rank;
  return rank;
}

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof name - 1) == 0 && name[0] != 0 ? name : "unknown";
}

absl::StatusOr<std::unique_ptr<Work>> ExchangeCommunicator::StartCounted(Exchange exchange) {
  const size_t world = static_cast<size_t>(world_size());
  BITSHARD_CHECK(exchange.send.size() == world && exchange.receive.size() == world)
      << exchange.name << ": " << exchange.send.size() << " and " << exchange.receive.size()
      << " entries for " << world << " ranks";
  const size_t self = static_cast<size_t>(rank());
  const std::span<const std::byte> from = exchange.send[self];
  const std::span<std::byte> to = exchange.receive[self];
  BITSHARD_CHECK(from.size() == to.size())
      << exchange.name << ": own entry, " << from.size() << " != " << to.size();
  if (!from.empty() && from.data() != to.data()) std::memcpy(to.data(), from.data(), from.size());
  exchange.send[self] = {};
  exchange.receive[self] = {};
  int64_t bytes = 0;
  for (const auto& piece : exchange.send) bytes += static_cast<int64_t>(piece.size());
  auto work = Start(std::move(exchange));
  if (work.ok()) bytes_sent_.fetch_add(bytes, std::memory_order_relaxed);
  return work;
}

absl::StatusOr<std::unique_ptr<Work>> ExchangeCommunicator::StartAllToAll(
    std::vector<std::span<const std::byte>> send, std::vector<std::span<std::byte>> receive,
    const std::string& name) {
  return StartCounted({.operation = Operation::kAllToAll,
                       .name = name,
                       .send = std::move(send),
                       .receive = std::move(receive)});
}

absl::StatusOr<std::unique_ptr<Work>> ExchangeCommunicator::StartAllGather(
    std::span<const std::byte> mine, std::vector<std::span<std::byte>> gathered,
    const std::string& name) {
  std::vector<std::span<const std::byte>> send(static_cast<size_t>(world_size()), mine);
  return StartCounted({.operation = Operation::kAllGather,
                       .name = name,
                       .send = std::move(send),
                       .receive = std::move(gathered)});
}

absl::Status ExchangeCommunicator::Broadcast(std::span<std::byte> data, int root,
                                             const std::string& name) {
  BITSHARD_CHECK(root >= 0 && root < world_size()) << root;
  const size_t world = static_cast<size_t>(world_size());
  Exchange exchange{.operation = Operation::kBroadcast, .name = name, .send = {}, .receive = {}};
  exchange.send.resize(world);
  exchange.receive.resize(world);
  if (rank() == root) {
    std::fill(exchange.send.begin(), exchange.send.end(), data);
    exchange.send[static_cast<size_t>(root)] = {};
  } else {
    exchange.receive[static_cast<size_t>(root)] = data;
  }
  BITSHARD_ASSIGN_OR_RETURN(const std::unique_ptr<Work> work, StartCounted(std::move(exchange)));
  return work->Wait();
}

absl::Status ExchangeCommunicator::ExchangeFinalize() {
  const size_t world = static_cast<size_t>(world_size());
  Exchange exchange{
      .operation = Operation::kFinalize, .name = "end of the run", .send = {}, .receive = {}};
  exchange.send.resize(world);
  exchange.receive.resize(world);
  BITSHARD_ASSIGN_OR_RETURN(const std::unique_ptr<Work> work, StartCounted(std::move(exchange)));
  return work->Wait();
}

}  // namespace bitshard::comm::internal
