# The CUDA half on machines without a GPU or nvcc: every bitshard_cuda_library gets two twins that g++ compiles and
# that run on the stand-in for the CUDA runtime in tests/cudahost.
#
#   bitshard::<name>_host         instrumented for the memory checker; kernels take 1.0 to 1.8 times as long
#   bitshard::<name>_host_plain   not checked: for runs of the whole program
#
# A test links one flavour throughout. Of the toolkit only the headers are needed.
# -DBITSHARD_CUDAHOST=OFF leaves the stand-in out.
bitshard_find_headers(BITSHARD_CUDA_INCLUDE HEADER crt/host_defines.h
  VERSION cuda_runtime_api.h "define CUDART_VERSION +13"
  WHEEL cu13 PACKAGES nvidia-cuda-runtime==13.0.96 nvidia-cuda-crt==13.0.88)
add_library(bitshard_cuda_headers INTERFACE)
target_include_directories(bitshard_cuda_headers SYSTEM INTERFACE ${BITSHARD_CUDA_INCLUDE})

find_path(BITSHARD_BOOST_CONTEXT_INCLUDE boost/context/detail/fcontext.hpp)
find_library(BITSHARD_BOOST_CONTEXT_LIB libboost_context.a)
if(NOT BITSHARD_BOOST_CONTEXT_INCLUDE OR NOT BITSHARD_BOOST_CONTEXT_LIB)
  message(FATAL_ERROR "Boost.Context not found: apt-get install libboost-context-dev")
endif()
add_library(bitshard_boost_context INTERFACE)
target_include_directories(bitshard_boost_context SYSTEM INTERFACE ${BITSHARD_BOOST_CONTEXT_INCLUDE})
target_link_libraries(bitshard_boost_context INTERFACE ${BITSHARD_BOOST_CONTEXT_LIB})

# g++ inserts a call at each access and at each misaligned one; tests/cudahost/check_callbacks.cc and check_alignment.cc
# are what is called, so the sanitizers' own runtimes are not linked. -fno-tree-sra: a float4 is one access, not four.
# One sanitizer excludes the other: with BITSHARD_SANITIZE both twins are plain.
# -gdwarf-4: Debian 12's addr2line names the wrapper instead of the .cu file for DWARF 5.
# -O1: it compiles fastest, and what runs is mostly the stand-in; docs/cudahost.md has both times.
set(BITSHARD_TWIN_FLAGS -O1 -g1 -gdwarf-4)
set(BITSHARD_CHECKED_FLAGS "")
if(NOT BITSHARD_SANITIZE)
  set(BITSHARD_CHECKED_FLAGS -fno-optimize-sibling-calls -fno-tree-sra -fsanitize=thread,alignment
      --param=tsan-instrument-func-entry-exit=0)
endif()

# bitshard_cudahost_sources(<variable> <file>...): .cc files as they are, each .cu in a wrapper that includes the shim
# first.
function(bitshard_cudahost_sources result)
  set(sources "")
  foreach(file IN LISTS ARGN)
    if(file MATCHES "\\.cu$")
      cmake_path(ABSOLUTE_PATH file NORMALIZE OUTPUT_VARIABLE path)
      cmake_path(RELATIVE_PATH path BASE_DIRECTORY ${CMAKE_SOURCE_DIR})
      set(wrapper ${CMAKE_CURRENT_BINARY_DIR}/cudahost/${file}.cc)
      file(CONFIGURE OUTPUT ${wrapper}
           CONTENT "#include \"tests/cudahost/cudahost.h\"\n\n#include \"${path}\"\n")
      list(APPEND sources ${wrapper})
    else()
      list(APPEND sources ${file})
    endif()
  endforeach()
  set(${result} "${sources}" PARENT_SCOPE)
endfunction()

# bitshard_cudahost_twins(<name> LAYER <layer> [HDRS ...] [SRCS ...] [CUDA_SRCS ...] [DEPS ...])
function(bitshard_cudahost_twins name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "LAYER" "HDRS;SRCS;CUDA_SRCS;DEPS")
  bitshard_cudahost_sources(sources ${arg_SRCS} ${arg_CUDA_SRCS})
  foreach(flavour host host_plain)
    set(deps "")
    foreach(dep IN LISTS arg_DEPS)
      string(REGEX REPLACE "^bitshard::" "bitshard_" target ${dep})
      if(TARGET ${target}_${flavour})
        set(dep ${dep}_${flavour})
      elseif(dep STREQUAL bitshard_cudart)
        set(dep bitshard_cudahost)
      elseif(dep STREQUAL bitshard_nccl)
        set(dep bitshard_cudahost_nccl)
      elseif(dep STREQUAL bitshard_cublas)
        set(dep bitshard_cudahost_cublas)
      endif()
      list(APPEND deps ${dep})
    endforeach()
    set(target bitshard_${name}_${flavour})
    add_library(${target} STATIC EXCLUDE_FROM_ALL ${arg_HDRS} ${sources})
    add_library(bitshard::${name}_${flavour} ALIAS ${target})
    bitshard_common(${target} ${arg_LAYER})
    bitshard_check_layers(${target} ${arg_LAYER} ${deps})
    target_link_libraries(${target} PUBLIC ${deps} bitshard_cuda_headers)
    target_compile_options(${target} PRIVATE ${BITSHARD_TWIN_FLAGS})
  endforeach()
  target_compile_options(bitshard_${name}_host PRIVATE ${BITSHARD_CHECKED_FLAGS})
endfunction()
