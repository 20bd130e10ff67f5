// The passes of a DeviceDecoder. Included by device_decoder.cc and device_decoder_backward.cc only.
#ifndef BITSHARD_TRAINER_MODEL_DEVICE_DECODER_ENGINE_H_
#define BITSHARD_TRAINER_MODEL_DEVICE_DECODER_ENGINE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "trainer/model/adapter.h"
#include "trainer/model/device_attention.h"
#include "trainer/model/device_decoder.h"
#include "trainer/model/device_matmul.h"
#include "trainer/model/device_weights.h"
#include "trainer/model/device_workspace.h"
#include "trainer/model/dropout_key.h"

namespace bitshard::trainer {

class DeviceDecoderEngine : public DeviceDecoder {
 public:
  DeviceDecoderEngine(const ModelConfig& config, const DecoderOptions& options, Adapter adapter,
                      cudaStream_t stream)
      : config_(config),
        options_(options),
        adapter_(std::move(adapter)),
        stream_(stream),
        type_(TypeOf(options.compute)) {}
  ~DeviceDecoderEngine() override;
  absl::Status Load(const io::WeightSource& source);

  absl::StatusOr<LossSum> ForwardBackward(
      const MicroBatch& batch, const DevicePassArgs& args,
      absl::FunctionRef<absl::Status(int64_t tensor)> ready) override;
  absl::StatusOr<LossSum> Evaluate(const MicroBatch& batch, const float* parameters) override;

 private:
  // One pass over one batch. `ready` is nullptr but in a backward pass.
  struct Pass {
    int64_t rows = 0;
    int64_t trained_rows = 0;
    const float* parameters = nullptr;  // nullptr: no adapter.
    float* gradients = nullptr;
    uint64_t seed = 0;
    int64_t step = 0;
    float loss_scale = 1;
    bool dropout = false;
    const absl::FunctionRef<absl::Status(int64_t)>* ready = nullptr;
  };
  struct Scale {
    float alpha = 1;
    float beta = 0;
  };

  // Forward.
  absl::Status Begin(const MicroBatch& batch, Pass* pass);
  absl::Status RunBlocks(const Pass& pass);
  absl::Status BlockForward(const Pass& pass, int64_t layer, bool with_output);
  absl::Status QkvForward(const Pass& pass, int64_t layer, const DeviceSavedBlock& s);
  absl::Status MlpForward(const Pass& pass, int64_t layer, bool with_output);
  absl::Status LinearForward(const Pass& pass, int64_t layer, Module module, void* x, void* y,
                             float beta);
  absl::Status AdapterDown(const Pass& pass, int64_t layer, Module module, void* x);
  bool HasAdapter(const Pass& pass, int64_t layer, Module module) const {
    return pass.parameters != nullptr && adapter_.tensors(layer, module).a >= 0;
  }
  absl::StatusOr<DeviceMatrix> Dropped(const Pass& pass, int64_t layer, Module module, void* x);
  DeviceAttentionArgs AttentionOf(const Pass& pass, const DeviceSavedBlock& s) const;
  DropoutKey DropoutKeyOf(const Pass& pass, int64_t layer, Module module) const;

  // Loss: of the trained rows, and the gradient of the last block's output in w_.grad.
  absl::Status Loss(const Pass& pass, bool gradient);
  absl::Status LossRows(const Pass& pass, int64_t first, int64_t count, bool gradient);
  absl::StatusOr<LossSum> FetchLoss(const Pass& pass);

  // Backward.
  absl::Status BlockBackward(const Pass& pass, int64_t layer);
  absl::Status MlpBackward(const Pass& pass, int64_t layer, const DeviceSavedBlock& s);
  absl::Status AttentionBlockBackward(const Pass& pass, int64_t layer, const DeviceSavedBlock& s);
  absl::Status QkvBackward(const Pass& pass, int64_t layer, const DeviceSavedBlock& s);
  absl::Status HeadsBackward(const Pass& pass, int64_t layer, const DeviceSavedBlock& s);
  absl::Status AdapterBackward(const Pass& pass, int64_t layer, Module module, void* x, void* dy,
                               void* dx);

  // Enqueues of one operation.
  absl::Status Multiply(const DeviceMatrix& a, const DeviceMatrix& b, const DeviceMatrix& out,
                        Scale scale);
  absl::Status MultiplyLinear(const DeviceMatrix& dy, int64_t layer, Module module,
                              const DeviceMatrix& dx, float beta);
  absl::Status WriteGradient(const Pass& pass, int64_t tensor, const DeviceMatrix& a,
                             const DeviceMatrix& b, float alpha);
  absl::Status Norm(void* x, const float* weight, void* y, float* inverse, int64_t rows, int64_t n);
  absl::Status NormBackward(void* x, const float* weight, float* inverse, void* dy, void* add,
                            void* dx, int64_t rows, int64_t n);
  absl::Status Rotate(const Pass& pass, void* x, int64_t heads, bool inverse);
  absl::Status Copy(void* to, const void* from, int64_t elems);

  // The adapter's matrix in the type of the activations.
  DeviceMatrix AdapterMatrix(const Pass& pass, int64_t tensor) const;
  int64_t bytes_of(int64_t elems) const { return elems * core::ByteSize(type_); }

  const ModelConfig config_;
  const DecoderOptions options_;
  const Adapter adapter_;
  const cudaStream_t stream_;
  const core::DType type_;
  DeviceWeights weights_;
  DeviceWorkspace w_;
  std::unique_ptr<DeviceMatMul> matmul_;
  std::vector<std::byte> host_batch_;  // As DeviceBatch lies in w_.
  std::vector<double> host_nats_;
};

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_DEVICE_DECODER_ENGINE_H_
