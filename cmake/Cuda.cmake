# The CUDA language, the runtime library and the flags of every .cu file; included only with BITSHARD_CUDA.
#
# nvcc 13 comes from -DCMAKE_CUDA_COMPILER or $CUDACXX, else from the toolkit in /usr/local/cuda or the PATH, else
# from NVIDIA's PyPI wheels (requirements-cuda.txt, installed by launch/setup.sh). The wheels lie in one folder laid
# out like a toolkit, except that it has lib/ where nvcc looks for lib64/ and libcudart.so.13 without libcudart.so.
if(BITSHARD_SANITIZE)
  message(FATAL_ERROR "BITSHARD_CUDA and BITSHARD_SANITIZE exclude each other: nvcc's host code is not instrumented")
endif()

# bitshard_nvcc_is_13(<variable> <file>): for find_program; keeps only an nvcc of release 13.
function(bitshard_nvcc_is_13 result nvcc)
  execute_process(COMMAND ${nvcc} --version OUTPUT_VARIABLE text ERROR_QUIET)
  if(NOT text MATCHES "release 13\\.")
    set(${result} FALSE PARENT_SCOPE)
  endif()
endfunction()

execute_process(COMMAND ${BITSHARD_PYTHON} -c
    "import sysconfig; print(sysconfig.get_path('purelib') + '/nvidia/cu13')"
  OUTPUT_VARIABLE cuda_wheels OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(BITSHARD_NVCC nvcc HINTS /usr/local/cuda/bin PATHS ${cuda_wheels}/bin
               VALIDATOR bitshard_nvcc_is_13 DOC "nvcc 13")
  if(NOT BITSHARD_NVCC)
    message(FATAL_ERROR "nvcc 13 not found: install the CUDA 13 toolkit and name it with -DCMAKE_CUDA_COMPILER=, "
                        "or its wheels: ${BITSHARD_PYTHON} -m pip install -r requirements-cuda.txt")
  endif()
  set(CMAKE_CUDA_COMPILER ${BITSHARD_NVCC})
  cmake_path(GET BITSHARD_NVCC PARENT_PATH nvcc_bin)
  cmake_path(GET nvcc_bin PARENT_PATH nvcc_root)
  if(EXISTS ${nvcc_root}/lib AND NOT EXISTS ${nvcc_root}/lib64)
    set(CMAKE_CUDA_FLAGS_INIT "-L${nvcc_root}/lib")
  endif()
endif()

set(CMAKE_CUDA_ARCHITECTURES "75;80;86;89;90;100;120" CACHE STRING "GPU generations to compile for")
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
# bitshard_cudart names the runtime library itself, the shared one: LibTorch loads it too, and two would not share
# their devices and streams.
set(CMAKE_CUDA_RUNTIME_LIBRARY None)
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 13.0)
  message(FATAL_ERROR "nvcc ${CMAKE_CUDA_COMPILER_VERSION} (${CMAKE_CUDA_COMPILER}): want 13.0 or later")
endif()

find_library(BITSHARD_CUDART_LIB NAMES libcudart.so.13 libcudart.so
             HINTS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} ${nvcc_root}/lib64 ${nvcc_root}/lib
             PATHS ${cuda_wheels}/lib)
if(NOT BITSHARD_CUDART_LIB)
  message(FATAL_ERROR "libcudart.so.13 not found beside ${CMAKE_CUDA_COMPILER}: name it with -DBITSHARD_CUDART_LIB=")
endif()
add_library(bitshard_cudart INTERFACE)
target_include_directories(bitshard_cudart SYSTEM INTERFACE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_link_libraries(bitshard_cudart INTERFACE ${BITSHARD_CUDART_LIB})
message(STATUS "CUDA: ${CMAKE_CUDA_COMPILER} ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}, "
               "${BITSHARD_CUDART_LIB}")

# Keeps what ptxas says of each kernel beside its object file: tests/checks/ptxas_check.py refuses spilled registers.
set(CMAKE_CUDA_COMPILER_LAUNCHER ${BITSHARD_PYTHON} ${CMAKE_CURRENT_LIST_DIR}/nvcc_log.py ${CMAKE_CUDA_COMPILER_LAUNCHER})

# bitshard_cuda_options(<target>): the flags of its .cu files. Same bits as the CPU needs no contraction into fused
# multiply-adds, IEEE division and square root, and denormals kept (docs/numerics.md); all but the first are nvcc's
# defaults, written down because -use_fast_math would change them.
# -Wsign-conversion is left out: nvcc's rewritten source has an int conversion in every array bound.
function(bitshard_cuda_options target)
  set_property(GLOBAL APPEND PROPERTY BITSHARD_CUDA_LIBRARIES ${target})  # tests/core links them all
  set(warnings ${BITSHARD_WARNINGS})
  list(REMOVE_ITEM warnings -Wsign-conversion)
  list(JOIN warnings "," warnings)
  list(JOIN BITSHARD_FP_FLAGS "," fp_flags)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:
    -fmad=false -ftz=false -prec-div=true -prec-sqrt=true
    "SHELL:-Werror all-warnings" -Xptxas=-v -Xcompiler=${warnings} -Xcompiler=${fp_flags}>)
endfunction()
