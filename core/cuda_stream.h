// Streams and events of CUDA that end with their scope.
//
//   BITSHARD_ASSIGN_OR_RETURN(const Stream copies, Stream::Create());
//   BITSHARD_ASSIGN_OR_RETURN(const Event done, Event::Create());
//   BITSHARD_RETURN_IF_ERROR(done.Record(copies.get()));
//   BITSHARD_RETURN_IF_ERROR(done.MakeWait(compute));  // compute goes on after what copies holds
#ifndef BITSHARD_CORE_CUDA_STREAM_H_
#define BITSHARD_CORE_CUDA_STREAM_H_

#include <cuda_runtime_api.h>

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace bitshard::core {

/// A stream that does not wait for the legacy NULL stream. Destroyed without waiting for what it
/// holds: its owner synchronises first where memory depends on it.
class Stream {
 public:
  /// On the current device.
  static absl::StatusOr<Stream> Create();
  Stream() = default;
  Stream(Stream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  Stream& operator=(Stream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  ~Stream();

  cudaStream_t get() const { return stream_; }
  /// Blocks until the stream is empty; an error of anything that ran on the device shows here.
  absl::Status Synchronize() const;

 private:
  cudaStream_t stream_ = nullptr;
};

struct EventOptions {
  bool timed = false;  ///< Usable with MillisecondsSince; costs a little more.
};

/// Before the first Record: complete.
class Event {
 public:
  static absl::StatusOr<Event> Create(EventOptions options = {});
  Event() = default;
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~Event();

  absl::Status Record(cudaStream_t stream) const;
  /// What is put on `stream` from now on waits for the last Record. Returns at once.
  absl::Status MakeWait(cudaStream_t stream) const;
  absl::Status Synchronize() const;
  absl::StatusOr<bool> IsComplete() const;
  /// Both timed and complete.
  absl::StatusOr<double> MillisecondsSince(const Event& start) const;

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace bitshard::core

#endif  // BITSHARD_CORE_CUDA_STREAM_H_
