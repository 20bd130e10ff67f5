#include "trainer/metrics.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/error.h"
#include "core/file.h"
#include "core/status_macros.h"
#include "trainer/io/json.h"
#include "trainer/tensorboard.h"

namespace bitshard::trainer {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr char kCsvHeader[] =
    "step,epoch,loss,learning_rate,grad_norm,tokens,trained_tokens,total_tokens,skipped,"
    "tokens_per_second,step_seconds,bytes_sent,peak_rss_bytes,eval_loss\n";

double WallTime() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

OrderedJson Number(double value) {
  return std::isfinite(value) ? OrderedJson(value) : OrderedJson(nullptr);
}

// A file that only grows, by whole records. A record that could not be written whole is taken back,
// so the next one starts cleanly; the first failure is kept.
class RecordFile {
 public:
  RecordFile(std::string path, core::ScopedFd fd, int64_t bytes)
      : path_(std::move(path)), fd_(std::move(fd)), bytes_(bytes) {}

  /// Opens or makes `path` and cuts it to its first `keep_bytes`.
  static absl::StatusOr<RecordFile> Open(const std::string& path, int64_t keep_bytes) {
    core::ScopedFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
    if (fd.get() < 0 || ftruncate(fd.get(), keep_bytes) != 0) {
      return core::StorageError(
          absl::StrCat(core::Escaped(path, 4096), ": ", std::strerror(errno)));
    }
    return RecordFile(path, std::move(fd), keep_bytes);
  }

  void Append(const std::string& record) {
    const absl::Status status = core::WriteAll(fd_.get(), record.data(), record.size(), path_);
    if (status.ok()) {
      bytes_ += static_cast<int64_t>(record.size());
      return;
    }
    if (status_.ok()) status_ = status;
    ++lost_;
    if (ftruncate(fd_.get(), bytes_) != 0 && status_.ok()) status_ = status;
  }

  void Sync() {
    struct stat info {};
    if (fstat(fd_.get(), &info) == 0 && info.st_nlink == 0 && status_.ok()) {
      status_ = core::StorageError(
          absl::StrCat(core::Escaped(path_, 4096),
                       ": was removed while the run was writing it: what it held is lost"));
    }
    if (fsync(fd_.get()) != 0 && status_.ok()) {
      status_ = core::StorageError(
          absl::StrCat(core::Escaped(path_, 4096), ": fsync: ", std::strerror(errno)));
    }
  }

  absl::Status status() const {
    if (status_.ok() || lost_ == 0) return status_;
    return core::StorageError(
        absl::StrFormat("%s (%d records lost)", std::string(status_.message()), lost_));
  }

 private:
  std::string path_;
  core::ScopedFd fd_;
  int64_t bytes_;
  int64_t lost_ = 0;
  absl::Status status_;
};

// Bytes of the leading whole lines for which `step_of` gives rising steps that are at most
// `last_step`.
template <class StepOf>
int64_t BytesToKeep(const std::string& text, int64_t last_step, size_t begin, StepOf step_of) {
  size_t keep = begin;
  int64_t previous = 0;
  while (true) {
    const size_t newline = text.find('\n', keep);
    if (newline == std::string::npos) break;
    const int64_t step = step_of(text.substr(keep, newline - keep));
    if (step <= previous || step > last_step) break;
    previous = step;
    keep = newline + 1;
  }
  return static_cast<int64_t>(keep);
}

// -1 for a line that is no step's.
int64_t StepOfJsonLine(const std::string& line) {
  const absl::StatusOr<io::Json> json = io::ParseJson(line, "metrics.jsonl");
  if (!json.ok() || !json->is_object() || !json->contains("step") ||
      !(*json)["step"].is_number_integer())
    return -1;
  return (*json)["step"].get<int64_t>();
}

int64_t StepOfCsvLine(const std::string& line) {
  const std::string digits = line.substr(0, line.find(','));
  const bool number = !digits.empty() && digits.size() < 19 &&
                      digits.find_first_not_of("0123456789") == std::string::npos;
  return number ? std::stoll(digits) : -1;
}

bool Exists(const std::string& path) {
  struct stat info {};
  return stat(path.c_str(), &info) == 0;
}

absl::StatusOr<RecordFile> OpenJsonl(const std::string& path, int64_t resumed_step) {
  int64_t keep = 0;
  if (resumed_step > 0 && Exists(path)) {
    BITSHARD_ASSIGN_OR_RETURN(const std::string text, core::ReadFile(path));
    keep = BytesToKeep(text, resumed_step, 0, StepOfJsonLine);
  }
  return RecordFile::Open(path, keep);
}

absl::StatusOr<RecordFile> OpenCsv(const std::string& path, int64_t resumed_step) {
  int64_t keep = 0;
  if (resumed_step > 0 && Exists(path)) {
    BITSHARD_ASSIGN_OR_RETURN(const std::string text, core::ReadFile(path));
    const std::string header = kCsvHeader;
    if (text.rfind(header, 0) == 0)
      keep = BytesToKeep(text, resumed_step, header.size(), StepOfCsvLine);
  }
  BITSHARD_ASSIGN_OR_RETURN(RecordFile file, RecordFile::Open(path, keep));
  if (keep == 0) file.Append(kCsvHeader);
  return file;
}

std::string CsvLine(const StepMetrics& m) {
  const auto number = [](double value) {
    return std::isfinite(value) ? OrderedJson(value).dump() : "";
  };
  return absl::StrCat(
      absl::StrJoin({absl::StrCat(m.step), number(m.epoch), number(m.loss), number(m.learning_rate),
                     number(m.grad_norm), absl::StrCat(m.tokens), absl::StrCat(m.trained_tokens),
                     absl::StrCat(m.total_tokens), absl::StrCat(m.skipped ? 1 : 0),
                     number(m.tokens_per_second), number(m.step_seconds),
                     absl::StrCat(m.bytes_sent), absl::StrCat(m.peak_rss_bytes),
                     m.eval_loss.has_value() ? number(*m.eval_loss) : std::string()},
                    ","),
      "\n");
}

// TensorBoard reads a folder's files in the order of their names: seconds first. The last number
// tells apart two sessions of one second.
std::string EventFilePath(const std::string& directory) {
  char host[256] = "host";
  (void)gethostname(host, sizeof host - 1);
  const auto seconds = static_cast<int64_t>(WallTime());
  for (int session = 0;; ++session) {
    const std::string path = absl::StrFormat("%s/events.out.tfevents.%d.%s.%d.%d", directory,
                                             seconds, core::Escaped(host), getpid(), session);
    if (!Exists(path)) return path;
  }
}

class FileMetricsWriter : public MetricsWriter {
 public:
  absl::Status Init(const MetricsOptions& options) {
    if (options.jsonl) {
      BITSHARD_ASSIGN_OR_RETURN(
          jsonl_, OpenJsonl(options.directory + "/metrics.jsonl", options.resumed_step));
    }
    if (options.csv) {
      BITSHARD_ASSIGN_OR_RETURN(csv_,
                                OpenCsv(options.directory + "/metrics.csv", options.resumed_step));
    }
    if (options.tensorboard) {
      BITSHARD_ASSIGN_OR_RETURN(events_, RecordFile::Open(EventFilePath(options.directory), 0));
      events_->Append(TensorBoardRecord(TensorBoardVersionEvent(WallTime())));
      const int64_t first = options.resumed_step == 0 ? 0 : options.resumed_step + 1;
      events_->Append(TensorBoardRecord(TensorBoardSessionStart(WallTime(), first)));
    }
    return absl::OkStatus();
  }

  void Write(const StepMetrics& metrics) override {
    if (jsonl_.has_value()) jsonl_->Append(MetricsLine(metrics) + "\n");
    if (csv_.has_value()) csv_->Append(CsvLine(metrics));
    if (!events_.has_value()) return;
    std::vector<std::pair<std::string, double>> scalars = {
        {"train/loss", metrics.loss},
        {"train/learning_rate", metrics.learning_rate},
        {"train/grad_norm", metrics.grad_norm},
        {"train/epoch", metrics.epoch},
        {"train/tokens_per_second", metrics.tokens_per_second},
        {"train/step_seconds", metrics.step_seconds},
        {"train/total_tokens", static_cast<double>(metrics.total_tokens)},
    };
    for (const auto& [phase, seconds] : metrics.phase_seconds)
      scalars.emplace_back("time/" + phase, seconds);
    if (metrics.eval_loss.has_value()) scalars.emplace_back("eval/loss", *metrics.eval_loss);
    events_->Append(TensorBoardRecord(TensorBoardScalars(WallTime(), metrics.step, scalars)));
  }

  void WriteScalar(const std::string& tag, int64_t step, double value) override {
    if (events_.has_value())
      events_->Append(TensorBoardRecord(TensorBoardScalars(WallTime(), step, {{tag, value}})));
  }

  void Sync() override {
    for (std::optional<RecordFile>* file : {&jsonl_, &csv_, &events_}) {
      if (file->has_value()) (*file)->Sync();
    }
  }

  absl::Status status() const override {
    for (const std::optional<RecordFile>* file : {&jsonl_, &csv_, &events_}) {
      if (file->has_value()) BITSHARD_RETURN_IF_ERROR((*file)->status());
    }
    return absl::OkStatus();
  }

 private:
  std::optional<RecordFile> jsonl_;
  std::optional<RecordFile> csv_;
  std::optional<RecordFile> events_;
};

void AddOptional(const std::string& key, const std::optional<double>& value, OrderedJson* json) {
  if (value.has_value()) (*json)[key] = Number(*value);
}

// One line of log_history as transformers names its fields.
OrderedJson LogEntry(const io::Json& line) {
  OrderedJson entry;
  for (const char* key : {"epoch", "grad_norm", "learning_rate", "loss", "step"}) {
    if (line.contains(key)) entry[key] = line[key];
  }
  return entry;
}

// Calls body(fields, line) for each line of metrics.jsonl.
template <class Body>
absl::Status ForEachStep(const std::string& metrics_path, Body body) {
  BITSHARD_ASSIGN_OR_RETURN(const std::string text, core::ReadFile(metrics_path));
  size_t begin = 0;
  for (size_t end = text.find('\n'); end != std::string::npos;
       begin = end + 1, end = text.find('\n', begin)) {
    BITSHARD_ASSIGN_OR_RETURN(const io::Json line,
                              io::ParseJson(text.substr(begin, end - begin), metrics_path));
    BITSHARD_ASSIGN_OR_RETURN(const io::JsonObject fields, io::JsonObject::Of(line, metrics_path));
    BITSHARD_RETURN_IF_ERROR(body(fields, line));
  }
  return absl::OkStatus();
}

}  // namespace

std::string MetricsLine(const StepMetrics& metrics) {
  OrderedJson json;
  json["step"] = metrics.step;
  json["epoch"] = Number(metrics.epoch);
  json["loss"] = Number(metrics.loss);
  json["learning_rate"] = Number(metrics.learning_rate);
  json["grad_norm"] = Number(metrics.grad_norm);
  json["tokens"] = metrics.tokens;
  json["trained_tokens"] = metrics.trained_tokens;
  json["total_tokens"] = metrics.total_tokens;
  if (metrics.skipped) json["skipped"] = true;
  json["tokens_per_second"] = Number(metrics.tokens_per_second);
  json["step_seconds"] = Number(metrics.step_seconds);
  OrderedJson phases = OrderedJson::object();
  for (const auto& [phase, seconds] : metrics.phase_seconds) phases[phase] = Number(seconds);
  json["phase_seconds"] = phases;
  json["bytes_sent"] = metrics.bytes_sent;
  json["peak_rss_bytes"] = metrics.peak_rss_bytes;
  AddOptional("eval_loss", metrics.eval_loss, &json);
  return json.dump(-1, ' ', true, OrderedJson::error_handler_t::replace);
}

absl::StatusOr<std::unique_ptr<MetricsWriter>> MetricsWriter::Open(const MetricsOptions& options) {
  auto writer = std::make_unique<FileMetricsWriter>();
  BITSHARD_RETURN_IF_ERROR(writer->Init(options));
  return writer;
}

absl::Status WriteSummary(const std::string& path, const RunSummary& summary) {
  OrderedJson json;
  json["version"] = summary.version;
  json["config_hash"] = summary.config_hash;
  json["world_size"] = summary.world_size;
  json["threads_per_rank"] = summary.threads_per_rank;
  json["compute_type"] = summary.compute_type;
  json["steps"] = summary.steps;
  json["total_tokens"] = summary.total_tokens;
  json["seconds"] = Number(summary.seconds);
  json["tokens_per_second"] = Number(summary.tokens_per_second);
  AddOptional("heldout_loss_before", summary.heldout_loss_before, &json);
  AddOptional("heldout_loss_after", summary.heldout_loss_after, &json);
  AddOptional("train_loss", summary.train_loss, &json);
  json["trainable_parameters"] = summary.trainable_parameters;
  json["planned_peak_rss_bytes"] = summary.planned_peak_rss_bytes;
  json["peak_rss_bytes"] = summary.peak_rss_bytes;
  json["planned_bytes_sent_per_step"] = summary.planned_bytes_sent_per_step;
  json["bytes_sent_per_step"] = summary.bytes_sent_per_step;
  return core::WriteFileAtomically(path, io::JsonText(json));
}

absl::StatusOr<StepTotals> ReadStepTotals(const std::string& metrics_path) {
  StepTotals totals;
  BITSHARD_RETURN_IF_ERROR(
      ForEachStep(metrics_path, [&](const io::JsonObject& fields, const io::Json&) -> absl::Status {
        BITSHARD_ASSIGN_OR_RETURN(const int64_t tokens, fields.GetInt("tokens"));
        BITSHARD_ASSIGN_OR_RETURN(const double seconds, fields.GetNumber("step_seconds"));
        totals.tokens += tokens;
        totals.seconds += seconds;
        BITSHARD_ASSIGN_OR_RETURN(totals.last_loss, fields.GetNumberOr("loss", std::nan("")));
        BITSHARD_ASSIGN_OR_RETURN(totals.last_bytes_sent, fields.GetInt("bytes_sent"));
        return absl::OkStatus();
      }));
  return totals;
}

absl::Status WriteTrainerState(const std::string& path, const std::string& metrics_path,
                               int64_t logging_steps) {
  OrderedJson state;
  OrderedJson history = OrderedJson::array();
  state["best_metric"] = nullptr;
  state["best_model_checkpoint"] = nullptr;
  state["epoch"] = 0;
  state["global_step"] = 0;
  BITSHARD_RETURN_IF_ERROR(ForEachStep(
      metrics_path, [&](const io::JsonObject& fields, const io::Json& line) -> absl::Status {
        BITSHARD_ASSIGN_OR_RETURN(const int64_t step, fields.GetInt("step"));
        state["global_step"] = step;
        if (line.contains("epoch")) state["epoch"] = line["epoch"];
        if (step % logging_steps == 0) history.push_back(LogEntry(line));
        if (line.contains("eval_loss")) {
          history.push_back(
              {{"epoch", state["epoch"]}, {"eval_loss", line["eval_loss"]}, {"step", step}});
        }
        return absl::OkStatus();
      }));
  state["is_hyper_param_search"] = false;
  state["is_local_process_zero"] = true;
  state["is_world_process_zero"] = true;
  state["log_history"] = history;
  state["logging_steps"] = logging_steps;
  return core::WriteFileAtomically(path, io::JsonText(state));
}

}  // namespace bitshard::trainer
