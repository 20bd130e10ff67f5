# What the CUDA half takes from NVIDIA beside the compiler: bitshard_cublas and bitshard_nccl with BITSHARD_CUDA, and
# bitshard_cublas_headers and bitshard_nccl_headers, which are all that the stand-in needs.
#
# LibTorch loads the wheels' libraries, and a process has one of each: so the wheels come first, a toolkit after them.
include_guard(GLOBAL)

# bitshard_find_headers(<variable> HEADER <file> VERSION <file> <regex> WHEEL <folder> PACKAGES <requirement>...)
# Sets the cache variable to the folder that holds HEADER, and a version file with a line that matches: an older
# toolkit in /usr/local/cuda is passed over.
function(bitshard_find_headers variable)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "HEADER;WHEEL" "VERSION;PACKAGES")
  list(GET arg_VERSION 0 bitshard_version_file)
  list(GET arg_VERSION 1 bitshard_version_regex)
  find_path(${variable} ${arg_HEADER}
    HINTS ${BITSHARD_PYTHON_PURELIB}/nvidia/${arg_WHEEL}/include PATHS /usr/local/cuda/include
    VALIDATOR bitshard_headers_match)
  if(NOT ${variable})
    list(JOIN arg_PACKAGES " " packages)
    message(FATAL_ERROR "${arg_HEADER} not found, or of another version: install it with ${BITSHARD_PYTHON} -m pip "
                        "install ${packages}, or name its folder with -D${variable}=")
  endif()
endfunction()

# For find_path, called where the version file and regex are set.
function(bitshard_headers_match result folder)
  set(lines "")
  if(EXISTS ${folder}/${bitshard_version_file})
    file(STRINGS ${folder}/${bitshard_version_file} lines REGEX "${bitshard_version_regex}" LIMIT_COUNT 1)
  endif()
  if(NOT lines)
    set(${result} FALSE PARENT_SCOPE)
  endif()
endfunction()

# bitshard_import(<name> LIBRARY <file> <as for bitshard_find_headers>): bitshard_<name>_headers, and with BITSHARD_CUDA
# bitshard_<name>. Wheels have LIBRARY, libx.so.N, without libx.so.
function(bitshard_import name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "LIBRARY" "")
  string(TOUPPER BITSHARD_${name} prefix)
  bitshard_find_headers(${prefix}_INCLUDE ${arg_UNPARSED_ARGUMENTS})
  add_library(bitshard_${name}_headers INTERFACE)
  target_include_directories(bitshard_${name}_headers SYSTEM INTERFACE ${${prefix}_INCLUDE})
  if(NOT BITSHARD_CUDA)
    return()
  endif()
  cmake_path(GET ${prefix}_INCLUDE PARENT_PATH root)
  string(REGEX REPLACE "\\.[0-9]+$" "" without_version ${arg_LIBRARY})
  find_library(${prefix}_LIB NAMES ${arg_LIBRARY} ${without_version}
               HINTS ${root}/lib64 ${root}/lib ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES})
  if(NOT ${prefix}_LIB)
    message(FATAL_ERROR "${arg_LIBRARY} not found beside ${${prefix}_INCLUDE}: name it with -D${prefix}_LIB=")
  endif()
  add_library(bitshard_${name} INTERFACE)
  target_link_libraries(bitshard_${name} INTERFACE bitshard_${name}_headers ${${prefix}_LIB})
endfunction()

if(BITSHARD_CUDA OR BITSHARD_CUDAHOST)
  bitshard_import(cublas LIBRARY libcublas.so.13 HEADER cublas_v2.h
    VERSION cublas_api.h "define CUBLAS_VER_MAJOR 13" WHEEL cu13 PACKAGES nvidia-cublas==13.1.0.3)
  bitshard_import(nccl LIBRARY libnccl.so.2 HEADER nccl.h
    VERSION nccl.h "define NCCL_MAJOR 2" WHEEL nccl PACKAGES nvidia-nccl-cu13==2.28.9)
endif()
