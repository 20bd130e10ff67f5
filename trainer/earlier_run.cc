#include "trainer/earlier_run.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/error.h"
#include "core/status_macros.h"
#include "trainer/checkpoint.h"

namespace bitshard::trainer {
namespace {

namespace fs = std::filesystem;

absl::Status Failed(const fs::path& path, const std::string& what, const std::error_code& error) {
  return core::StorageError(
      absl::StrCat(core::Escaped(path.string(), 4096), ": an earlier run's, can't be ", what, ": ",
                   error.message(), "; move it away, or choose another output_dir"));
}

// What a run is kept for. summary.json, first, says that the others are complete; the checkpoints
// follow.
std::vector<std::string> KeptNames(const fs::path& directory) {
  std::vector<std::string> names = {"summary.json", "answers.json", "adapter"};
  for (const int64_t step : ListCheckpoints(directory.string()))
    names.push_back(absl::StrCat("checkpoint-", step));
  return names;
}

// What any run leaves beside that, one that was stopped in its first steps too.
std::vector<std::string> OtherNames(const fs::path& directory) {
  std::vector<std::string> names = {"latest", "trainer_state.json", "metrics.jsonl", "metrics.csv",
                                    "config.yaml"};
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (absl::StartsWith(name, "events.out.tfevents.")) names.push_back(name);
  }
  return names;
}

bool Exists(const fs::path& path) {
  std::error_code error;
  return fs::symlink_status(path, error).type() != fs::file_type::not_found;
}

}  // namespace

absl::StatusOr<std::string> SetEarlierRunAside(const std::string& directory) {
  const fs::path from = directory;
  std::vector<std::string> names = KeptNames(from);
  const bool keep = std::any_of(names.begin(), names.end(),
                                [&](const std::string& name) { return Exists(from / name); });
  const std::vector<std::string> others = OtherNames(from);
  names.insert(names.end(), others.begin(), others.end());
  fs::path to;
  std::error_code error;
  if (keep) {
    int number = 1;
    do {
      to = from / absl::StrCat("earlier-", number++);
    } while (Exists(to));
    if (!fs::create_directory(to, error)) return Failed(to, "made", error);
  }
  for (const std::string& name : names) {
    const fs::path path = from / name;
    if (!Exists(path)) continue;
    if (keep) {
      fs::rename(path, to / name, error);
    } else {
      fs::remove(path, error);
    }
    if (error) return Failed(path, keep ? "moved" : "removed", error);
  }
  return to.string();
}

}  // namespace bitshard::trainer
