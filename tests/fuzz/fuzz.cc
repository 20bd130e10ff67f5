#include "tests/fuzz/fuzz.h"

#include <gtest/gtest.h>
#include <time.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/error.h"
#include "core/hash.h"
#include "tests/fuzz/heap_meter.h"
#include "tests/fuzz/mutate.h"

namespace bitshard::fuzz {
namespace {

constexpr int64_t kMostHeapBytes = int64_t{64} << 20;
constexpr double kMostSeconds = 1.0;
constexpr int kMostFailures = 5;  // After so many the rest would tell nothing new.

int64_t FromEnvironment(const char* name, int64_t fallback) {
  const char* text = std::getenv(name);
  int64_t value = fallback;
  BITSHARD_CHECK(text == nullptr || absl::SimpleAtoi(std::string(text), &value))
      << name << "=" << text;
  return value;
}

// Of this thread: what other programs do on the machine does not count.
double ProcessorSeconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// The message without what differs from input to input: numbers, what a quote begins, and what
// stands before the last colon then (file, place, key).
std::string KindOfMessage(const std::string& message) {
  std::string text = message.substr(0, message.find_first_of("\"'"));
  while (!text.empty() && (text.back() == ' ' || text.back() == ':')) text.pop_back();
  const size_t colon = text.rfind(": ");
  std::string kind;
  for (const char c : text.substr(colon == std::string::npos ? 0 : colon)) {
    if (!absl::ascii_isdigit(static_cast<unsigned char>(c))) kind += c;
  }
  return kind;
}

// "" when the status is as it must be.
std::string FaultOf(const absl::Status& status, const std::string& folder) {
  if (status.ok()) return "";
  const std::string message(status.message());
  const core::ErrorKind kind = core::KindOf(status);
  if (kind != core::ErrorKind::kData && kind != core::ErrorKind::kConfig) {
    return "is of another kind than kData or kConfig";
  }
  if (message.find(folder) == std::string::npos) return "does not name the file";
  if (core::Escaped(message, message.size()) != message) {
    return "holds characters that are not printable";
  }
  return "";
}

class Runner {
 public:
  explicit Runner(const Target& target) : target_(target) {
    std::string pattern = std::filesystem::temp_directory_path() / "bitshard_fuzz_XXXXXX";
    BITSHARD_CHECK(mkdtemp(pattern.data()) != nullptr) << pattern;
    folder_ = pattern;
    path_ = absl::StrCat(folder_, "/", target.file);
    if (target.prepare) target.prepare(folder_);
  }
  ~Runner() {
    std::error_code ignored;
    if (!testing::Test::HasFailure()) std::filesystem::remove_all(folder_, ignored);
  }
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

  void Run();

 private:
  void Write(const std::string& content) {
    // A new file each time: ext4 writes a file that was cut to nothing to the disk when it is
    // closed, 4 ms each.
    std::filesystem::remove(path_);
    std::ofstream file(path_, std::ios::binary | std::ios::trunc);
    file << content;
    file.close();
    BITSHARD_CHECK(file.good()) << path_;
  }
  std::string Input(int64_t number) const {
    Stream stream(core::Hash64(target_.name.data(), target_.name.size()) +
                  static_cast<uint64_t>(number));
    std::string input = Mutate(target_.seeds, target_.dictionary, &stream);
    if (target_.repair && number % 2 == 1) target_.repair(&input);
    return input;
  }
  // "" when everything held.
  std::string TryInput();

  const Target& target_;
  std::string folder_, path_;
  std::set<std::string> messages_;
  int64_t accepted_ = 0;
  int failures_ = 0;
};

std::string Runner::TryInput() {
  ResetHeapPeak();
  const int64_t heap_before = HeapBytes();
  const double start = ProcessorSeconds();
  const absl::Status status = target_.read(path_);
  const double seconds = ProcessorSeconds() - start;
  const int64_t heap = HeapPeakBytes() - heap_before;
  if (status.ok()) {
    ++accepted_;
  } else {
    messages_.insert(KindOfMessage(std::string(status.message())));
  }
  const std::string fault = FaultOf(status, folder_);
  if (!fault.empty()) return absl::StrCat("the status ", fault, ": ", status.ToString());
  if (heap > kMostHeapBytes) return absl::StrCat("held ", heap, " bytes of heap");
  if (seconds > kMostSeconds) return absl::StrCat("took ", seconds, " s");
  return "";
}

void Runner::Run() {
  for (const std::string& seed : target_.seeds) {
    Write(seed);
    const absl::Status status = target_.read(path_);
    ASSERT_TRUE(status.ok()) << target_.name << ": a seed is refused: " << status;
  }
  const int64_t first = FromEnvironment("BITSHARD_FUZZ_FIRST", 0);
  const int64_t inputs = FromEnvironment("BITSHARD_FUZZ_INPUTS", target_.inputs);
  std::printf("%s: the input being read is %s\n", target_.name.c_str(), path_.c_str());
  std::fflush(stdout);
  for (int64_t number = first; number < first + inputs && failures_ < kMostFailures; ++number) {
    const std::string input = Input(number);
    Write(input);
    const std::string fault = TryInput();
    if (fault.empty()) continue;
    ++failures_;
    const std::string kept = absl::StrCat(folder_, "/failed-", number);
    std::filesystem::copy_file(path_, kept, std::filesystem::copy_options::overwrite_existing);
    ADD_FAILURE() << target_.name << ": input " << number << " (kept as " << kept << "): " << fault;
  }
  std::printf("%s: %lld inputs, %lld of them accepted, %zu kinds of messages\n",
              target_.name.c_str(), static_cast<long long>(inputs),
              static_cast<long long>(accepted_), messages_.size());
  if (inputs >= target_.inputs) {
    EXPECT_GE(static_cast<int>(messages_.size()), target_.least_messages)
        << "the mutations do not reach far into the reader";
    EXPECT_GT(accepted_, 0) << "no mutated input is accepted: does the reader accept anything?";
  }
}

}  // namespace

void Run(const Target& target) {
  BITSHARD_CHECK(!target.seeds.empty() && target.read) << target.name;
  Runner(target).Run();
}

}  // namespace bitshard::fuzz
