# What bitshard's libraries link with. Included by the build and, installed, by bitshardConfig.cmake; what is missing is
# appended to bitshard_missing, with how to get it. All from Debian.

# bitshard_require(<package> <debian package> [find_package arguments]): find_package with a message that helps.
macro(bitshard_require package debian)
  find_package(${package} ${ARGN} QUIET)
  if(NOT ${package}_FOUND)
    list(APPEND bitshard_missing "${package} not found: apt-get install ${debian}")
  endif()
endmacro()

bitshard_require(absl libabsl-dev)
find_package(hwy CONFIG QUIET)
if(NOT TARGET hwy::hwy)
  list(APPEND bitshard_missing "Highway not found: apt-get install libhwy-dev")
endif()
bitshard_require(Threads libc6-dev)
find_path(BITSHARD_XXHASH_INCLUDE xxhash.h)
find_library(BITSHARD_XXHASH_LIB xxhash)
if(NOT BITSHARD_XXHASH_INCLUDE OR NOT BITSHARD_XXHASH_LIB)
  list(APPEND bitshard_missing "xxhash not found: apt-get install libxxhash-dev")
elseif(NOT TARGET bitshard_xxhash)
  add_library(bitshard_xxhash INTERFACE IMPORTED)
  target_include_directories(bitshard_xxhash INTERFACE ${BITSHARD_XXHASH_INCLUDE})
  target_link_libraries(bitshard_xxhash INTERFACE ${BITSHARD_XXHASH_LIB})
endif()
# By flag, not by the path of g++'s libgomp: LibTorch brings the same library, and a process must have one.
if(NOT TARGET bitshard_openmp)
  add_library(bitshard_openmp INTERFACE IMPORTED)
  target_compile_options(bitshard_openmp INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fopenmp>)
  target_link_options(bitshard_openmp INTERFACE -fopenmp)
endif()
