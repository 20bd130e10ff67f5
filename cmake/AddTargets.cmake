# bitshard_library, bitshard_cuda_library, bitshard_binary, bitshard_test, bitshard_gpu_test: targets with the project's
# warnings and floating-point rules, checked against cmake/Layers.cmake.
# Structs are filled by designated initialisers at the call; fields left out take their default on purpose.
set(BITSHARD_WARNINGS -Wall -Wextra -Wsign-conversion -Wno-missing-field-initializers -Werror)
# Rule code is compiled without contraction, so that CPU, CUDA and the scalar reference give the same bits
# (docs/numerics.md); -fno-math-errno lets sqrt vectorise and changes no value.
set(BITSHARD_FP_FLAGS -ffp-contract=off -fno-math-errno)

function(bitshard_common target layer)
  set_target_properties(${target} PROPERTIES BITSHARD_LAYER ${layer})
  target_include_directories(${target} PUBLIC $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}>)
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:${BITSHARD_WARNINGS} ${BITSHARD_FP_FLAGS}>)
  if(BITSHARD_SANITIZE)
    target_compile_options(${target} PRIVATE
      -fsanitize=${BITSHARD_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
    target_link_options(${target} PRIVATE -fsanitize=${BITSHARD_SANITIZE})
  endif()
endfunction()

# bitshard_library(<name> LAYER <layer> [HDRS ...] [SRCS ...] [CUDA_SRCS ...] [DEPS ...] [TORCH] [SHARED])
# Makes target bitshard_<name> with the alias bitshard::<name>. TORCH: its sources include torch headers.
function(bitshard_library name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "TORCH;SHARED" "LAYER" "HDRS;SRCS;CUDA_SRCS;DEPS")
  set(target bitshard_${name})
  set(kind STATIC)
  if(arg_SHARED)
    set(kind SHARED)
  endif()
  add_library(${target} ${kind} ${arg_HDRS} ${arg_SRCS})
  add_library(bitshard::${name} ALIAS ${target})
  set_target_properties(${target} PROPERTIES LINKER_LANGUAGE CXX BITSHARD_HEADERS "${arg_HDRS}")
  bitshard_common(${target} ${arg_LAYER})
  bitshard_check_layers(${target} ${arg_LAYER} ${arg_DEPS})
  target_link_libraries(${target} PUBLIC ${arg_DEPS})
  if(arg_TORCH)
    target_link_libraries(${target} PUBLIC bitshard_torch)
  endif()
  if(BITSHARD_CUDA AND arg_CUDA_SRCS)
    target_sources(${target} PRIVATE ${arg_CUDA_SRCS})
    bitshard_cuda_options(${target})
  endif()
endfunction()

# bitshard_cuda_library(<name> ...): as bitshard_library, for what needs the CUDA runtime. Made with BITSHARD_CUDA; with
# BITSHARD_CUDAHOST its twins on the stand-in are, bitshard::<name>_host and bitshard::<name>_host_plain.
function(bitshard_cuda_library name)
  if(BITSHARD_CUDA)
    bitshard_library(${name} ${ARGN})
  endif()
  if(BITSHARD_CUDAHOST)
    bitshard_cudahost_twins(${name} ${ARGN})
  endif()
endfunction()

# bitshard_binary(<name> LAYER <layer> SRCS ... DEPS ... [TORCH]): an executable called <name>.
function(bitshard_binary name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "TORCH" "LAYER" "SRCS;DEPS")
  add_executable(${name} ${arg_SRCS})
  bitshard_common(${name} ${arg_LAYER})
  bitshard_check_layers(${name} ${arg_LAYER} ${arg_DEPS})
  target_link_libraries(${name} PRIVATE ${arg_DEPS})
  if(arg_TORCH)
    target_link_libraries(${name} PRIVATE bitshard_torch)
  endif()
endfunction()

# bitshard_test(<name> SRCS ... DEPS ... [TORCH] [RANKS <n>] [LABELS ...] [TIMEOUT <s>])
# A GoogleTest executable and a ctest entry of the same name; RANKS: started by mpirun with that many ranks.
function(bitshard_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "TORCH" "RANKS;TIMEOUT" "SRCS;DEPS;LABELS")
  set(torch "")
  if(arg_TORCH)
    set(torch TORCH)
  endif()
  set(main GTest::gtest_main)
  if(arg_RANKS)
    set(main "")  # an MPI test brings its own main: MPI_Init before, MPI_Finalize after the tests
  endif()
  bitshard_binary(${name} LAYER tests SRCS ${arg_SRCS}
                  DEPS ${arg_DEPS} GTest::gmock ${main} ${torch})
  if(arg_RANKS)
    add_test(NAME ${name} COMMAND ${CMAKE_SOURCE_DIR}/launch/mpirun.sh -n ${arg_RANKS} $<TARGET_FILE:${name}>)
  else()
    add_test(NAME ${name} COMMAND ${name})
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 600)
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${arg_LABELS}" TIMEOUT ${arg_TIMEOUT}
    ENVIRONMENT "OMP_NUM_THREADS=2" SKIP_RETURN_CODE 77)
endfunction()

# bitshard_gpu_test(<name> SRCS ... DEPS ... [RANKS <n>] [TIMEOUT <s>])
# The sources of a test on the stand-in, linked with the real libraries: `ctest --preset gpu`. Only with BITSHARD_CUDA.
# Without a device it is skipped: by tests/core/gpu_main.cc, with RANKS by the main that the test brings. RANKS adds
# <name>_1_rank, which is what of it runs on a machine with one GPU. Target gpu_tests builds them all.
function(bitshard_gpu_test name)
  if(NOT BITSHARD_CUDA)
    return()
  endif()
  bitshard_test(${name} ${ARGN} LABELS gpu)
  if("RANKS" IN_LIST ARGN)
    add_test(NAME ${name}_1_rank COMMAND ${CMAKE_SOURCE_DIR}/launch/mpirun.sh -n 1 $<TARGET_FILE:${name}>)
    set_tests_properties(${name}_1_rank PROPERTIES LABELS gpu TIMEOUT 300 SKIP_RETURN_CODE 77
      ENVIRONMENT "OMP_NUM_THREADS=2")
    # Else mpirun says at length that ranks which skip the test have failed.
    set_property(TEST ${name} ${name}_1_rank APPEND PROPERTY ENVIRONMENT "OMPI_MCA_orte_execute_quiet=1")
  else()
    target_sources(${name} PRIVATE $<TARGET_OBJECTS:bitshard_gpu_main>)
  endif()
  add_dependencies(gpu_tests ${name})
endfunction()

# bitshard_python_test(<name> SCRIPT <file> [ARGS ...] [LABELS ...] [TIMEOUT <s>]): an oracle test in Python;
# exit status 77 means skipped.
function(bitshard_python_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "SCRIPT;TIMEOUT" "ARGS;LABELS")
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 1200)
  endif()
  add_test(NAME ${name} COMMAND ${BITSHARD_PYTHON} ${arg_SCRIPT} ${arg_ARGS})
  set_tests_properties(${name} PROPERTIES LABELS "oracle;${arg_LABELS}" TIMEOUT ${arg_TIMEOUT}
    SKIP_RETURN_CODE 77
    ENVIRONMENT "OMP_NUM_THREADS=2;PYTHONPATH=${CMAKE_SOURCE_DIR};PYTHONDONTWRITEBYTECODE=1")
endfunction()
