# The stand-in for NCCL, against the real nccl.h.
bitshard_library(cudahost_nccl LAYER tests
  HDRS nccl_comm.h nccl_data.h nccl_faults.h nccl_shared.h
  SRCS nccl_api.cc nccl_calls.cc nccl_comm.cc nccl_data.cc nccl_faults.cc nccl_group.cc nccl_shared.cc
  DEPS bitshard::cudahost bitshard_nccl_headers)
target_link_options(bitshard_cudahost_nccl INTERFACE -Wl,--exclude-libs,libbitshard_cudahost_nccl.a)

bitshard_test(cudahost_nccl_test SRCS nccl_test.cc nccl_checks.cc DEPS bitshard::cudahost_nccl TIMEOUT 120)
