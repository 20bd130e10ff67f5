// TensorBoard event files, written by hand: records of length, masked CRC-32C of the length, bytes,
// masked CRC-32C of the bytes; each a tensorflow.Event message in protobuf wire format with one
// scalar. Source: tensorflow/core/lib/io/record_writer.cc and tensorflow/core/util/event.proto
// (formats only).
#ifndef BITSHARD_TRAINER_TENSORBOARD_H_
#define BITSHARD_TRAINER_TENSORBOARD_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace bitshard::trainer {

/// CRC-32C (Castagnoli) of `data`.
uint32_t Crc32c(const std::string& data);

/// A record with its lengths and checksums.
std::string TensorBoardRecord(const std::string& event);

/// The first event of a file: its version.
std::string TensorBoardVersionEvent(double wall_time);

/// Tells a reader to forget all events of steps from `step` on in earlier files of the folder.
std::string TensorBoardSessionStart(double wall_time, int64_t step);

/// One step's scalars.
std::string TensorBoardScalars(double wall_time, int64_t step,
                               const std::vector<std::pair<std::string, double>>& scalars);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_TENSORBOARD_H_
