#include "trainer/data/text_process.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/error.h"
#include "core/file.h"
#include "core/status_macros.h"
#include "trainer/data/cache_key.h"
#include "trainer/io/json.h"

namespace bitshard::trainer {
namespace {

namespace fs = std::filesystem;
using io::Json;
using io::JsonObject;

constexpr std::chrono::milliseconds kLockPoll(50);
constexpr char kWho[] = "the text process (python -m trainer.text)";

// ASCII only, so that no locale of the child's matters; ill-formed UTF-8 becomes U+FFFD.
std::string LineOf(const nlohmann::ordered_json& json) {
  return json.dump(-1, ' ', true, nlohmann::ordered_json::error_handler_t::replace);
}

WaitOptions WaitFor(const TextPython& python) {
  return {.seconds = python.stall_timeout_seconds, .stop_requested = python.stop_requested};
}

absl::StatusOr<std::unique_ptr<ChildProcess>> StartPython(const TextPython& python,
                                                          const std::vector<std::string>& command) {
  // -P: the package is the one below package_root, whatever lies in the working directory.
  std::vector<std::string> arguments = {python.interpreter, "-P",       "-m",
                                        "trainer.text",     "--parent", absl::StrCat(getpid())};
  arguments.insert(arguments.end(), command.begin(), command.end());
  const fs::path root = fs::absolute(python.package_root);
  auto child = ChildProcess::Start({.arguments = arguments,
                                    .environment = {"PYTHONPATH=" + root.string(), "PYTHONUTF8=1",
                                                    "PYTHONDONTWRITEBYTECODE=1"}});
  if (child.ok()) return child;
  return core::ConfigError(absl::StrCat(std::string(child.status().message()),
                                        "; the environment variable BITSHARD_PYTHON names the "
                                        "Python that prepares text (3.11 or newer)"));
}

// `status` is that of a ChildProcess: its message is a clause about the child.
absl::Status WithLastWords(const absl::Status& status, ChildProcess* child) {
  if (core::KindOf(status) == core::ErrorKind::kInterrupted) return status;
  const std::string words = child->LastWords();
  return core::MakeError(core::KindOf(status),
                         absl::StrCat(kWho, " ", std::string(status.message()),
                                      words.empty() ? "" : "; its last lines:\n", words));
}

// The end of the child's output before it said that it was done.
absl::Status UnexpectedEnd(ChildProcess* child) {
  return WithLastWords(core::DataError(child->End()), child);
}

// The next JSON object; the child's end and {"error": ...} are errors.
absl::StatusOr<Json> NextObject(const TextPython& python, ChildProcess* child) {
  auto line = child->ReadLine(WaitFor(python));
  if (!line.ok()) return WithLastWords(line.status(), child);
  if (!line->has_value()) return UnexpectedEnd(child);
  BITSHARD_ASSIGN_OR_RETURN(Json json, io::ParseJson(**line, kWho));
  BITSHARD_RETURN_IF_ERROR(JsonObject::Of(json, kWho).status());
  return json;
}

std::string CacheName(const TokenCacheSpec& spec, const std::string& key) {
  return (fs::path(spec.cache_directory) / (key + ".tokens")).string();
}

// Who holds the lock, and a count that grows as long as it gets on.
std::string ReadLockText(int fd) {
  char buffer[400];
  const ssize_t got = pread(fd, buffer, sizeof buffer, 0);
  return std::string(buffer, static_cast<size_t>(got > 0 ? got : 0));
}

// For those who wait; a lock whose text can't be written is a lock all the same.
void WriteLockText(int fd, const TokenCacheSpec& spec, int64_t count) {
  char host[256] = "?";
  (void)gethostname(host, sizeof host - 1);
  const std::string text =
      absl::StrCat(spec.caller, " (process ", getpid(), " on ", host, ")\n", count, "\n");
  if (ftruncate(fd, 0) == 0) (void)!pwrite(fd, text.data(), text.size(), 0);
}

absl::StatusOr<core::ScopedFd> Lock(const std::string& path, const TokenCacheSpec& spec) {
  core::ScopedFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644));
  if (fd.get() < 0) {
    return core::StorageError(
        absl::StrCat(core::Escaped(path, 4096), ": can't be opened: ", std::strerror(errno)));
  }
  using Clock = std::chrono::steady_clock;
  std::string seen;
  Clock::time_point since = Clock::now();
  while (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) {
      return core::StorageError(
          absl::StrCat(core::Escaped(path, 4096), ": flock: ", std::strerror(errno)));
    }
    if (spec.python.stop_requested && spec.python.stop_requested()) {
      return core::InterruptedError("asked to stop while another process makes the token cache");
    }
    const std::string text = ReadLockText(fd.get());
    if (text != seen) since = Clock::now();
    seen = text;
    if (std::chrono::duration<double>(Clock::now() - since).count() > spec.lock_timeout_seconds) {
      const std::string holder = core::Escaped(seen.substr(0, seen.find('\n')));
      return core::PeerError(
          absl::StrFormat("%s holds %s to make the token cache and has not got on for %g s: it "
                          "hangs or is stopped; "
                          "end it and start again, or raise comm.timeout",
                          holder.empty() ? "another process" : holder, core::Escaped(path, 4096),
                          spec.lock_timeout_seconds));
    }
    std::this_thread::sleep_for(kLockPoll);
  }
  return fd;
}

// What a child that was killed left behind. Only the holder of the lock may call this.
void RemoveUnfinished(const std::string& cache_name) {
  const fs::path path = cache_name;
  const std::string prefix = path.filename().string() + ".tmp.";
  std::error_code error;
  std::vector<fs::path> unfinished;
  for (fs::directory_iterator entry(path.parent_path(), error), end; !error && entry != end;
       entry.increment(error)) {
    if (absl::StartsWith(entry->path().filename().string(), prefix)) {
      unfinished.push_back(entry->path());
    }
  }
  for (const fs::path& file : unfinished) fs::remove(file, error);
}

nlohmann::ordered_json SpecJson(const TokenCacheSpec& spec, const std::string& output) {
  nlohmann::ordered_json datasets = nlohmann::ordered_json::array();
  for (const DatasetOptions& dataset : spec.datasets) {
    datasets.push_back({{"path", dataset.path}, {"type", SampleTypeName(dataset.type)}});
  }
  return {{"output", output},
          {"tokenizer", spec.tokenizer},
          {"datasets", datasets},
          {"sequence_len", spec.sequence_len},
          {"excess_length", ExcessLengthName(spec.excess_length)},
          {"train_on_inputs", spec.train_on_inputs}};
}

// {"error": text, "exit_code": kind} as a status.
absl::Status ReportedError(const JsonObject& object) {
  BITSHARD_ASSIGN_OR_RETURN(const std::string message, object.GetString("error"));
  const io::IntRange user_errors = {static_cast<int64_t>(core::ErrorKind::kConfig),
                                    static_cast<int64_t>(core::ErrorKind::kStorage)};
  BITSHARD_ASSIGN_OR_RETURN(const int64_t kind, object.GetInt("exit_code", user_errors));
  return core::MakeError(static_cast<core::ErrorKind>(kind), message);
}

// Runs the child until the cache is written; returns its peak resident set.
absl::StatusOr<int64_t> MakeCache(const TokenCacheSpec& spec, const std::string& output,
                                  const std::function<void()>& on_life) {
  BITSHARD_ASSIGN_OR_RETURN(const std::unique_ptr<ChildProcess> child,
                            StartPython(spec.python, {"prepare"}));
  const absl::Status sent = child->WriteLine(LineOf(SpecJson(spec, output)), WaitFor(spec.python));
  if (!sent.ok()) return WithLastWords(sent, child.get());
  child->CloseInput();
  while (true) {
    BITSHARD_ASSIGN_OR_RETURN(const Json json, NextObject(spec.python, child.get()));
    on_life();
    BITSHARD_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(json, kWho));
    if (object.Has("error")) return ReportedError(object);
    if (object.Has("progress")) {
      BITSHARD_ASSIGN_OR_RETURN(const std::string text, object.GetString("progress"));
      if (spec.on_progress) spec.on_progress(core::Escaped(text, 500));
      continue;
    }
    BITSHARD_ASSIGN_OR_RETURN(const JsonObject done, object.GetObject("done"));
    return done.GetInt("peak_rss_bytes");
  }
}

absl::StatusOr<std::unique_ptr<TokenCache>> OpenChecked(const TokenCacheSpec& spec,
                                                        const std::string& path) {
  BITSHARD_ASSIGN_OR_RETURN(std::unique_ptr<TokenCache> cache, TokenCache::Open(path));
  if (cache->max_sample_tokens() > spec.sequence_len) {
    return core::DataError(absl::StrFormat(
        "%s: a sample of %d tokens, want at most %d (sequence_len); delete the file",
        core::Escaped(path, 4096), cache->max_sample_tokens(), spec.sequence_len));
  }
  return cache;
}

}  // namespace

absl::StatusOr<PreparedCache> PrepareTokenCache(const TokenCacheSpec& spec) {
  BITSHARD_ASSIGN_OR_RETURN(const std::string key, TokenCacheKey(spec));
  const absl::Status made = core::MakeDirectories(spec.cache_directory);
  if (!made.ok()) {
    return core::StorageError(absl::StrCat(std::string(made.message()),
                                           "; the token cache is made in .cache beside output_dir: "
                                           "choose one whose parent folder can be written"));
  }
  const std::string path = CacheName(spec, key);
  std::error_code error;
  if (fs::exists(path, error)) {  // Whole as soon as it has this name, so no lock is needed.
    absl::StatusOr<std::unique_ptr<TokenCache>> cache = OpenChecked(spec, path);
    if (cache.ok()) return PreparedCache{.cache = *std::move(cache)};
  }
  const std::string lock_path = (fs::path(spec.cache_directory) / (key + ".lock")).string();
  BITSHARD_ASSIGN_OR_RETURN(const core::ScopedFd lock, Lock(lock_path, spec));
  WriteLockText(lock.get(), spec, 0);
  PreparedCache result;
  if (fs::exists(path, error)) {
    auto cache = OpenChecked(spec, path);
    if (cache.ok()) {
      result.cache = *std::move(cache);
      return result;
    }
    if (spec.on_progress) {
      spec.on_progress(absl::StrCat(std::string(cache.status().message()), "; making it anew"));
    }
  }
  RemoveUnfinished(path);
  int64_t count = 0;
  const absl::StatusOr<int64_t> peak =
      MakeCache(spec, path, [&] { WriteLockText(lock.get(), spec, ++count); });
  if (!peak.ok()) {
    RemoveUnfinished(path);
    return peak.status();
  }
  result.made = true;
  result.text_process_peak_bytes = *peak;
  BITSHARD_ASSIGN_OR_RETURN(result.cache, OpenChecked(spec, path));
  return result;
}

absl::StatusOr<std::unique_ptr<TextSession>> TextSession::Start(const TextSessionSpec& spec) {
  BITSHARD_ASSIGN_OR_RETURN(std::unique_ptr<ChildProcess> child,
                            StartPython(spec.python, {"serve", "--tokenizer", spec.tokenizer}));
  BITSHARD_ASSIGN_OR_RETURN(const Json json, NextObject(spec.python, child.get()));
  BITSHARD_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(json, kWho));
  if (object.Has("error")) return ReportedError(object);
  BITSHARD_ASSIGN_OR_RETURN(const JsonObject ready, object.GetObject("ready"));
  std::unique_ptr<TextSession> session(new TextSession(spec.python, std::move(child)));
  const io::IntRange id_range = {0, (int64_t{1} << 31) - 1};
  BITSHARD_ASSIGN_OR_RETURN(session->vocab_size_, ready.GetInt("vocab_size", id_range));
  BITSHARD_ASSIGN_OR_RETURN(const std::vector<int64_t> stop,
                            ready.GetInts("stop_tokens", id_range));
  session->stop_tokens_.assign(stop.begin(), stop.end());
  return session;
}

// One request line, one answer.
absl::StatusOr<io::Json> TextSession::Ask(const std::string& request) {
  const absl::Status sent = child_->WriteLine(request, WaitFor(python_));
  if (!sent.ok()) return WithLastWords(sent, child_.get());
  BITSHARD_ASSIGN_OR_RETURN(Json json, NextObject(python_, child_.get()));
  BITSHARD_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(json, kWho));
  if (object.Has("error")) return ReportedError(object);
  return json;
}

absl::StatusOr<std::vector<int32_t>> TextSession::AskForTokens(const std::string& request) {
  BITSHARD_ASSIGN_OR_RETURN(const Json json, Ask(request));
  BITSHARD_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(json, kWho));
  BITSHARD_ASSIGN_OR_RETURN(const std::vector<int64_t> tokens,
                            object.GetInts("tokens", {0, vocab_size_ - 1}));
  return std::vector<int32_t>(tokens.begin(), tokens.end());
}

absl::StatusOr<std::vector<int32_t>> TextSession::RenderPrompt(
    const std::vector<ChatMessage>& messages) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const ChatMessage& message : messages) {
    list.push_back({{"role", message.role}, {"content", message.content}});
  }
  return AskForTokens(LineOf({{"render", list}}));
}

absl::StatusOr<std::vector<int32_t>> TextSession::Encode(const std::string& text) {
  return AskForTokens(LineOf({{"encode", text}}));
}

absl::Status TextSession::Export(const std::string& folder) {
  return Ask(LineOf({{"export", folder}})).status();
}

absl::StatusOr<std::string> TextSession::Decode(std::span<const int32_t> tokens) {
  const nlohmann::ordered_json ids = std::vector<int32_t>(tokens.begin(), tokens.end());
  BITSHARD_ASSIGN_OR_RETURN(const Json json, Ask(LineOf({{"decode", ids}})));
  BITSHARD_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(json, kWho));
  return object.GetString("text");
}

}  // namespace bitshard::trainer
