// DeviceDecoder: the passes of trainer/model/decoder.h on a GPU: base, activations, adapter and
// gradients in device memory, products by cuBLAS, the rest by kernels of our own. Built only with
// BITSHARD_CUDA.
//
//   BITSHARD_ASSIGN_OR_RETURN(auto decoder, DeviceDecoder::Create(*source, options, stream));
//   BITSHARD_ASSIGN_OR_RETURN(const LossSum sum,
//       decoder->ForwardBackward(batch, {.parameters = arena, .gradients = leaf, ...}, ready));
#ifndef BITSHARD_TRAINER_MODEL_DEVICE_DECODER_H_
#define BITSHARD_TRAINER_MODEL_DEVICE_DECODER_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "trainer/data/micro_batch.h"
#include "trainer/io/weight_source.h"
#include "trainer/model/decoder.h"

namespace bitshard::trainer {

/// Device pointers; otherwise as PassArgs.
struct DevicePassArgs {
  const float* parameters = nullptr;  ///< [adapter_layout().padded_elems()]
  float* gradients = nullptr;         ///< Every element of every tensor is written, not added.
  uint64_t seed = 0;
  int64_t step = 0;
  double loss_scale = 1;
};

/// Threads: one thread calls it, with the device current that it was created on. Streams: all work
/// is on the stream of Create. Numerics: as Decoder's, in the same order of rounding, but for the
/// last bits of exp, of sums and of products, and that gradients of a bfloat16 pass are not rounded
/// to bfloat16. The same batch, parameters and device give the same bits.
class DeviceDecoder {
 public:
  /// Quantises tensor by tensor on the host as it reads, and copies; `stream` outlives it. Errors:
  /// those of Decoder::Create; kConfig for a head_dim that the kernels have no room for.
  static absl::StatusOr<std::unique_ptr<DeviceDecoder>> Create(const io::WeightSource& source,
                                                               const DecoderOptions& options,
                                                               cudaStream_t stream);
  /// Device memory by purpose. Errors: kConfig for targets that match nothing.
  static absl::StatusOr<DecoderCost> Cost(const ModelConfig& config, const DecoderOptions& options);
  virtual ~DeviceDecoder() = default;

  /// Loss and gradients of one micro-batch. `ready` is called once for each tensor of the adapter's
  /// layout, in its order, as soon as what writes its gradient is enqueued. Waits for the stream at
  /// the end.
  virtual absl::StatusOr<LossSum> ForwardBackward(
      const MicroBatch& batch, const DevicePassArgs& args,
      absl::FunctionRef<absl::Status(int64_t tensor)> ready) = 0;

  /// Loss only, without dropout; nullptr: of the base without adapter. Waits for the stream.
  virtual absl::StatusOr<LossSum> Evaluate(const MicroBatch& batch, const float* parameters) = 0;
};

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_DEVICE_DECODER_H_
