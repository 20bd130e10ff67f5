# The stand-in for the CUDA runtime (runtime.h says what of it tests set and read).
target_sources(bitshard_cudahost PRIVATE
  runtime.h runtime_state.h
  runtime_copy.cc runtime_device.cc runtime_error_names.cc runtime_errors.cc runtime_event.cc runtime_managed.cc
  runtime_memory.cc runtime_pages.cc runtime_pinned.cc runtime_state.cc runtime_stream.cc)

bitshard_test(cudahost_runtime_test
  SRCS runtime_device_test.cc runtime_managed_test.cc runtime_memory_test.cc runtime_stream_test.cc
  DEPS bitshard_cudahost LABELS asan)
