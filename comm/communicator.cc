#include "comm/communicator.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "core/error.h"
#include "core/status_macros.h"

namespace bitshard::comm {
namespace {

// More than any message of ours, and little enough to allocate on another rank's word.
constexpr int64_t kMaxStringBytes = int64_t{1} << 30;

std::span<const std::byte> BytesOf(const std::string& text) {
  return std::as_bytes(std::span<const char>(text.data(), text.size()));
}

std::span<std::byte> WritableBytesOf(std::string& text) {
  return std::as_writable_bytes(std::span<char>(text.data(), text.size()));
}

// A status as bytes: its code, then its message, payload names and payloads, each after its length.
void AppendFramed(const std::string& text, std::string* out) {
  const int64_t size = static_cast<int64_t>(text.size());
  out->append(reinterpret_cast<const char*>(&size), sizeof size);
  out->append(text);
}

std::string Encode(const absl::Status& status) {
  std::string out;
  AppendFramed(absl::StrCat(static_cast<int>(status.code())), &out);
  AppendFramed(std::string(status.message()), &out);
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) {
    AppendFramed(std::string(url), &out);
    AppendFramed(std::string(payload), &out);
  });
  return out;
}

std::optional<std::string> TakeFramed(const std::string& in, size_t* at) {
  int64_t size = 0;
  if (in.size() - *at < sizeof size) return std::nullopt;
  std::memcpy(&size, in.data() + *at, sizeof size);
  *at += sizeof size;
  if (size < 0 || static_cast<uint64_t>(size) > in.size() - *at) return std::nullopt;
  std::string text = in.substr(*at, static_cast<size_t>(size));
  *at += static_cast<size_t>(size);
  return text;
}

absl::Status Decode(const std::string& in, const std::string& prefix) {
  size_t at = 0;
  const std::optional<std::string> code = TakeFramed(in, &at);
  const std::optional<std::string> message = TakeFramed(in, &at);
  int value = 0;
  if (!code || !message || !absl::SimpleAtoi(*code, &value)) {
    return absl::InternalError(absl::StrCat(prefix, "sent a status that can't be read"));
  }
  absl::Status status(static_cast<absl::StatusCode>(value), absl::StrCat(prefix, *message));
  while (at < in.size()) {
    const std::optional<std::string> url = TakeFramed(in, &at);
    const std::optional<std::string> payload = TakeFramed(in, &at);
    if (!url || !payload) break;
    status.SetPayload(*url, absl::Cord(*payload));
  }
  return status;
}

// Marks a status that every rank has got from AgreeOnStatus.
constexpr char kAgreedUrl[] = "bitshard/agreed";

}  // namespace

bool WasAgreed(const absl::Status& status) { return status.GetPayload(kAgreedUrl).has_value(); }

absl::Status Communicator::AllToAll(std::vector<std::span<const std::byte>> send,
                                    std::vector<std::span<std::byte>> receive,
                                    const std::string& name) {
  BITSHARD_ASSIGN_OR_RETURN(const std::unique_ptr<Work> work,
                            StartAllToAll(std::move(send), std::move(receive), name));
  return work->Wait();
}

absl::Status Communicator::AllGather(std::span<const std::byte> mine,
                                     std::vector<std::span<std::byte>> gathered,
                                     const std::string& name) {
  BITSHARD_ASSIGN_OR_RETURN(const std::unique_ptr<Work> work,
                            StartAllGather(mine, std::move(gathered), name));
  return work->Wait();
}

absl::Status Communicator::Barrier() {
  return AllGather({}, std::vector<std::span<std::byte>>(static_cast<size_t>(world_size())),
                   "barrier");
}

absl::StatusOr<std::vector<std::string>> Communicator::GatherStrings(const std::string& mine,
                                                                     const std::string& name) {
  const size_t world = static_cast<size_t>(world_size());
  const int64_t my_size = static_cast<int64_t>(mine.size());
  if (my_size > kMaxStringBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": ", my_size, " bytes, want at most ", kMaxStringBytes));
  }
  BITSHARD_ASSIGN_OR_RETURN(const std::vector<int64_t> sizes, GatherInt64(my_size, name));

  std::vector<std::string> strings(world);
  std::vector<std::span<std::byte>> to(world);
  bool all_empty = true;
  for (size_t r = 0; r < world; ++r) {
    if (sizes[r] < 0 || sizes[r] > kMaxStringBytes) {
      return absl::InternalError(
          absl::StrCat(name, ": rank ", r, " announces ", sizes[r], " bytes"));
    }
    all_empty = all_empty && sizes[r] == 0;
    strings[r].resize(static_cast<size_t>(sizes[r]));
    to[r] = WritableBytesOf(strings[r]);
  }
  if (!all_empty) BITSHARD_RETURN_IF_ERROR(AllGather(BytesOf(mine), to, name));
  return strings;
}

absl::StatusOr<std::string> Communicator::BroadcastString(const std::string& text,
                                                          const std::string& name) {
  int64_t size = static_cast<int64_t>(text.size());
  BITSHARD_RETURN_IF_ERROR(Broadcast(std::as_writable_bytes(std::span(&size, 1)), 0, name));
  if (size < 0 || size > kMaxStringBytes) {
    return absl::InternalError(absl::StrCat(name, ": rank 0 announces ", size, " bytes"));
  }
  std::string result = rank() == 0 ? text : std::string(static_cast<size_t>(size), '\0');
  if (size > 0) BITSHARD_RETURN_IF_ERROR(Broadcast(WritableBytesOf(result), 0, name));
  return result;
}

absl::Status Communicator::AgreeOnStatus(const absl::Status& mine) {
  if (mine.ok() && world_size() == 1) return mine;
  // OK is the empty string, so agreement on success costs one collective of 8 bytes a rank.
  BITSHARD_ASSIGN_OR_RETURN(const std::vector<std::string> statuses,
                            GatherStrings(mine.ok() ? "" : Encode(mine), "agree on status"));
  for (size_t r = 0; r < statuses.size(); ++r) {
    if (statuses[r].empty()) continue;
    absl::Status agreed =
        Decode(statuses[r], world_size() > 1 ? absl::StrCat("rank ", r, ": ") : "");
    agreed.SetPayload(kAgreedUrl, absl::Cord());
    return agreed;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int64_t>> Communicator::GatherInt64(int64_t mine,
                                                               const std::string& name) {
  std::vector<int64_t> values(static_cast<size_t>(world_size()));
  std::vector<std::span<std::byte>> to;
  for (int64_t& value : values) to.push_back(std::as_writable_bytes(std::span(&value, 1)));
  BITSHARD_RETURN_IF_ERROR(AllGather(std::as_bytes(std::span(&mine, 1)), std::move(to), name));
  return values;
}

absl::StatusOr<int64_t> Communicator::SumInt64(int64_t mine) {
  BITSHARD_ASSIGN_OR_RETURN(const std::vector<int64_t> values, GatherInt64(mine, "sum"));
  return std::accumulate(values.begin(), values.end(), int64_t{0});
}

absl::StatusOr<int64_t> Communicator::MaxInt64(int64_t mine) {
  BITSHARD_ASSIGN_OR_RETURN(const std::vector<int64_t> values, GatherInt64(mine, "maximum"));
  return *std::max_element(values.begin(), values.end());
}

}  // namespace bitshard::comm
