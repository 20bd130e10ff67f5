# The stand-in for NCCL, against the real nccl.h.
bitshard_library(cudahost_nccl LAYER tests
  HDRS nccl_comm.h nccl_data.h nccl_faults.h nccl_shared.h
  SRCS nccl_api.cc nccl_calls.cc nccl_comm.cc nccl_data.cc nccl_faults.cc nccl_group.cc nccl_shared.cc
  DEPS bitshard::cudahost bitshard_nccl_headers)
target_link_options(bitshard_cudahost_nccl INTERFACE -Wl,--exclude-libs,libbitshard_cudahost_nccl.a)

bitshard_test(cudahost_nccl_test SRCS nccl_test.cc nccl_checks.cc DEPS bitshard::cudahost_nccl TIMEOUT 300)
bitshard_test(cudahost_nccl_ranks_test SRCS nccl_ranks_test.cc nccl_checks.cc
  DEPS bitshard::cudahost_nccl bitshard::comm_mpi RANKS 2 TIMEOUT 300)
add_test(NAME cudahost_nccl_ranks_test_4_ranks
         COMMAND ${CMAKE_SOURCE_DIR}/launch/mpirun.sh -n 4 $<TARGET_FILE:cudahost_nccl_ranks_test>)
set_tests_properties(cudahost_nccl_ranks_test_4_ranks PROPERTIES TIMEOUT 300 ENVIRONMENT "OMP_NUM_THREADS=1")
# A rank that is killed in the middle ends the job.
add_test(NAME cudahost_nccl_death_test
         COMMAND sh -c "BITSHARD_CUDAHOST_NCCL='rank=1 die_at=20' ${CMAKE_SOURCE_DIR}/launch/mpirun.sh -n 3 \
$<TARGET_FILE:cudahost_nccl_ranks_test>; test $? = 137")
set_tests_properties(cudahost_nccl_death_test PROPERTIES TIMEOUT 300)
# Open MPI leaves memory of its own behind.
set_property(TEST cudahost_nccl_ranks_test cudahost_nccl_ranks_test_4_ranks
             APPEND PROPERTY ENVIRONMENT "ASAN_OPTIONS=detect_leaks=0")
