# The stand-in for cuBLAS, against the real cublas_v2.h.
bitshard_library(cudahost_cublas LAYER tests
  SRCS cublas.cc
  DEPS bitshard::cudahost bitshard_cublas_headers)
# Its products are most of what a model's pass costs here, whatever the build type.
target_compile_options(bitshard_cudahost_cublas PRIVATE -O3)
target_link_options(bitshard_cudahost_cublas INTERFACE -Wl,--exclude-libs,libbitshard_cudahost_cublas.a)

bitshard_test(cudahost_cublas_test SRCS cublas_test.cc DEPS bitshard::cudahost_cublas LABELS cudahost TIMEOUT 300)
