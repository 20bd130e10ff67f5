#include "core/cuda_stream.h"

#include "core/cuda_status.h"
#include "core/status_macros.h"

namespace bitshard::core {

// In the destructors an error means that the context is gone or broken, and with it the handle.

absl::StatusOr<Stream> Stream::Create() {
  Stream stream;
  BITSHARD_RETURN_IF_ERROR(
      BITSHARD_CUDA_STATUS(cudaStreamCreateWithFlags(&stream.stream_, cudaStreamNonBlocking)));
  return stream;
}

Stream::~Stream() {
  if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
}

absl::Status Stream::Synchronize() const {
  return BITSHARD_CUDA_STATUS(cudaStreamSynchronize(stream_));
}

absl::StatusOr<Event> Event::Create(EventOptions options) {
  Event event;
  BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(cudaEventCreateWithFlags(
      &event.event_, options.timed ? cudaEventDefault : cudaEventDisableTiming)));
  return event;
}

Event::~Event() {
  if (event_ != nullptr) (void)cudaEventDestroy(event_);
}

absl::Status Event::Record(cudaStream_t stream) const {
  return BITSHARD_CUDA_STATUS(cudaEventRecord(event_, stream));
}

absl::Status Event::MakeWait(cudaStream_t stream) const {
  return BITSHARD_CUDA_STATUS(cudaStreamWaitEvent(stream, event_, 0));
}

absl::Status Event::Synchronize() const {
  return BITSHARD_CUDA_STATUS(cudaEventSynchronize(event_));
}

absl::StatusOr<bool> Event::IsComplete() const {
  const cudaError_t error = cudaEventQuery(event_);
  if (error == cudaErrorNotReady) {
    (void)cudaGetLastError();  // An answer, but the runtime keeps it as an error.
    return false;
  }
  BITSHARD_RETURN_IF_ERROR(CudaStatus(error, "cudaEventQuery", __FILE__, __LINE__));
  return true;
}

absl::StatusOr<double> Event::MillisecondsSince(const Event& start) const {
  float milliseconds = 0;
  BITSHARD_RETURN_IF_ERROR(
      BITSHARD_CUDA_STATUS(cudaEventElapsedTime(&milliseconds, start.event_, event_)));
  return static_cast<double>(milliseconds);
}

}  // namespace bitshard::core
