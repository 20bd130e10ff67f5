// What every command begins with: the configuration that all ranks agree on, threads, the model's
// files, the data.
#ifndef BITSHARD_TRAINER_SESSION_H_
#define BITSHARD_TRAINER_SESSION_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "trainer/command_line.h"
#include "trainer/config.h"
#include "trainer/devices.h"
#include "trainer/io/weight_source.h"
#include "trainer/model/decoder.h"
#include "trainer/plan.h"
#include "trainer/progress.h"
#include "trainer/replica.h"
#include "trainer/training_data.h"

namespace bitshard::trainer {

struct Session {
  Config config;  ///< The same on every rank; device, compute_type and paging.tier resolved.
  comm::Communicator* comm = nullptr;
  const Devices* devices = nullptr;
  std::unique_ptr<Console> console;  ///< Silent but on rank 0.
  std::unique_ptr<io::WeightSource> source;
  std::unique_ptr<TrainingData> data;  ///< After OpenData.
  int64_t text_process_peak_bytes =
      0;  ///< Of the Python process that made the caches; 0: none did.
};

/// Loads the configuration on every rank, resolves what depends on the machine, makes sure that it
/// is the same on all, sets threads and timeouts, opens the model's files. `devices` outlives it. A
/// collective. Errors: kConfig with the keys that differ between ranks; those of LoadConfig,
/// ResolveDevice and OpenModel; agreed.
absl::StatusOr<std::unique_ptr<Session>> OpenSession(const CommandLine& line,
                                                     comm::Communicator* comm,
                                                     const Devices& devices);

/// Prepares and opens the data, and says what it is. A collective.
absl::Status OpenData(Session* session);

/// On the CPU. Errors: kMemory, kData, kConfig; agreed. A collective.
absl::StatusOr<std::unique_ptr<Decoder>> MakeDecoder(const Session& session,
                                                     const DecoderOptions& options);

/// On the device of the configuration. Errors: as those of MakeDecoder, and kPeer; agreed. A
/// collective.
absl::StatusOr<std::unique_ptr<Replica>> MakeReplica(const Session& session,
                                                     const DecoderOptions& options);

/// The plan for `world_size` ranks. Needs OpenData; call it before the model is loaded. A
/// collective.
absl::StatusOr<Plan> PlanOf(const Session& session, int world_size);

/// A kInterrupted status with "; what_to_do" at its end; any other as it is.
absl::Status AdviseIfStopped(const absl::Status& status, const std::string& what_to_do);

/// The .gguf file or model folder that holds the tokenizer.
std::string TokenizerOf(const Session& session);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_SESSION_H_
