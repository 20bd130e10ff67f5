// The Python package trainer/text, started as a child process: it makes token caches, and turns
// prompts into tokens and tokens into text for `generate`.
//
//   const TextPython python = {.interpreter = ".deps/venv/bin/python", .package_root = "."};
//   BITSHARD_ASSIGN_OR_RETURN(PreparedCache train,
//                             PrepareTokenCache({.python = python,
//                                                .cache_directory = "runs/.cache",
//                                                .tokenizer = "model.gguf",
//                                                .datasets = config.data.datasets,
//                                                .sequence_len = 512}));
//   BITSHARD_ASSIGN_OR_RETURN(auto text, TextSession::Start({.python = python,
//                                                            .tokenizer = "model.gguf"}));
//   BITSHARD_ASSIGN_OR_RETURN(auto ids, text->RenderPrompt({{"user", "What is a kluge?"}}));
//
// The child has its own process group and three pipes, inherits no other file, and is killed by the
// kernel when its parent dies and by the destructor when it is not needed any more.
//
// Threads: PrepareTokenCache may be called by any number of processes and threads at a time; one
// thread calls a TextSession.
#ifndef BITSHARD_TRAINER_DATA_TEXT_PROCESS_H_
#define BITSHARD_TRAINER_DATA_TEXT_PROCESS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "trainer/config.h"
#include "trainer/data/child_process.h"
#include "trainer/data/token_cache.h"
#include "trainer/io/json.h"

namespace bitshard::trainer {

/// How the Python package is started.
struct TextPython {
  std::string interpreter;   ///< A Python 3.11 or newer with tokenizers, jinja2 and pyarrow.
  std::string package_root;  ///< The folder that holds trainer/text.
  /// Seconds without any sign of life after which the child counts as hung.
  double stall_timeout_seconds = 300;
  /// Asked a few times a second while waiting; true ends the wait with InterruptedError. May be
  /// empty.
  std::function<bool()> stop_requested;
};

/// What decides the content of a cache, and where it goes.
struct TokenCacheSpec {
  TextPython python;
  std::string caller = "a process";  ///< "rank 1": how the processes that wait name this one.
  /// Seconds without progress of the process that makes the cache after which the others give up.
  double lock_timeout_seconds = 600;
  std::string cache_directory;  ///< Made where it does not exist. Ranks of one node share it.
  std::string tokenizer;        ///< A .gguf file or a Hugging Face folder.
  std::vector<DatasetOptions> datasets;
  int64_t sequence_len = 512;
  ExcessLength excess_length = ExcessLength::kDrop;
  bool train_on_inputs = false;
  /// Gets a line about what is going on now and then. May be empty.
  std::function<void(const std::string&)> on_progress;
};

struct PreparedCache {
  std::unique_ptr<TokenCache> cache;
  bool made = false;  ///< By this call; false: it was there, or another process made it.
  int64_t text_process_peak_bytes = 0;  ///< VmHWM of the child that made it, or 0.
};

/// The cache for `spec`: the one that is there, or else a new one. Its name is a hash over the
/// content of the data files, of the tokenizer and of the Python package's sources, and over the
/// settings. A lock file makes several processes that want the same cache wait for the one that
/// makes it, as long as that one gets on; there is no collective in here. A damaged cache is made
/// anew.
/// Errors: kData with file, line or row, and key for the user's data, and with the child's last
/// words when it dies or hangs; kConfig when it can't be started; kPeer naming the process that was
/// to make the cache and does not get on; kStorage; kInterrupted. Nothing half-written is left.
absl::StatusOr<PreparedCache> PrepareTokenCache(const TokenCacheSpec& spec);

/// One message of a chat.
struct ChatMessage {
  std::string role;
  std::string content;
};

struct TextSessionSpec {
  TextPython python;
  std::string tokenizer;  ///< A .gguf file or a Hugging Face folder.
};

/// A long-lived child that encodes and decodes.
class TextSession {
 public:
  /// Errors: kData for the tokenizer's files, kConfig when the child can't be started.
  static absl::StatusOr<std::unique_ptr<TextSession>> Start(const TextSessionSpec& spec);

  /// The chat by the model's template, up to where the assistant's answer begins.
  /// Errors: kData: no template, or what the template refuses.
  absl::StatusOr<std::vector<int32_t>> RenderPrompt(const std::vector<ChatMessage>& messages);
  /// Plain text; names of special tokens in it become those tokens, as in transformers. No BOS is
  /// added. Here and above, ill-formed UTF-8 becomes U+FFFD.
  absl::StatusOr<std::vector<int32_t>> Encode(const std::string& text);
  /// UTF-8; special tokens are left out.
  absl::StatusOr<std::string> Decode(std::span<const int32_t> tokens);

  /// Writes the tokenizer's files into `folder`, as transformers reads them.
  /// Errors: kStorage; kData where the tokenizer's own files can't be read.
  absl::Status Export(const std::string& folder);

  /// Of the child.
  pid_t process_id() const { return child_->pid(); }
  /// Tokens that end an answer.
  const std::vector<int32_t>& stop_tokens() const { return stop_tokens_; }
  /// Every token id is smaller.
  int64_t vocab_size() const { return vocab_size_; }

 private:
  TextSession(TextPython python, std::unique_ptr<ChildProcess> child)
      : python_(std::move(python)), child_(std::move(child)) {}
  absl::StatusOr<io::Json> Ask(const std::string& request);
  absl::StatusOr<std::vector<int32_t>> AskForTokens(const std::string& request);

  TextPython python_;
  std::unique_ptr<ChildProcess> child_;
  std::vector<int32_t> stop_tokens_;
  int64_t vocab_size_ = 0;
};

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_DATA_TEXT_PROCESS_H_
