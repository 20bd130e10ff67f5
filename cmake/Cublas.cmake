# bitshard_cublas_headers: cublas_v2.h, from the toolkit or the wheel nvidia-cublas, which torch brings along.
# bitshard_cublas: the library too, of which the wheel has libcublas.so.13 without libcublas.so.
include_guard(GLOBAL)
find_path(BITSHARD_CUBLAS_INCLUDE cublas_v2.h
  HINTS /usr/local/cuda/include PATHS ${BITSHARD_PYTHON_PURELIB}/nvidia/cu13/include)
if(NOT BITSHARD_CUBLAS_INCLUDE)
  message(FATAL_ERROR "cublas_v2.h not found: install it with ${BITSHARD_PYTHON} -m pip install nvidia-cublas==13.1.0.3, "
                      "or name its folder with -DBITSHARD_CUBLAS_INCLUDE=")
endif()
add_library(bitshard_cublas_headers INTERFACE)
target_include_directories(bitshard_cublas_headers SYSTEM INTERFACE ${BITSHARD_CUBLAS_INCLUDE})

if(BITSHARD_CUDA)
  cmake_path(GET BITSHARD_CUBLAS_INCLUDE PARENT_PATH cublas_root)
  find_library(BITSHARD_CUBLAS_LIB NAMES libcublas.so.13 libcublas.so
               HINTS ${cublas_root}/lib64 ${cublas_root}/lib ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES})
  if(NOT BITSHARD_CUBLAS_LIB)
    message(FATAL_ERROR "libcublas.so.13 not found beside ${BITSHARD_CUBLAS_INCLUDE}: name it with -DBITSHARD_CUBLAS_LIB=")
  endif()
  add_library(bitshard_cublas INTERFACE)
  target_link_libraries(bitshard_cublas INTERFACE bitshard_cublas_headers ${BITSHARD_CUBLAS_LIB})
endif()
