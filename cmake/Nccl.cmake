# bitshard_nccl_headers: nccl.h, from the toolkit, a system package, or the wheel nvidia-nccl-cu13. bitshard_nccl: the
# library too, of which the wheel has libnccl.so.2 without libnccl.so.
include_guard(GLOBAL)
find_path(BITSHARD_NCCL_INCLUDE nccl.h
  HINTS /usr/local/cuda/include PATHS ${BITSHARD_PYTHON_PURELIB}/nvidia/nccl/include)
if(NOT BITSHARD_NCCL_INCLUDE)
  message(FATAL_ERROR "nccl.h not found: install it with ${BITSHARD_PYTHON} -m pip install nvidia-nccl-cu13==2.28.9, "
                      "or name its folder with -DBITSHARD_NCCL_INCLUDE=")
endif()
add_library(bitshard_nccl_headers INTERFACE)
target_include_directories(bitshard_nccl_headers SYSTEM INTERFACE ${BITSHARD_NCCL_INCLUDE})

if(BITSHARD_CUDA)
  cmake_path(GET BITSHARD_NCCL_INCLUDE PARENT_PATH nccl_root)
  find_library(BITSHARD_NCCL_LIB NAMES libnccl.so.2 libnccl.so HINTS ${nccl_root}/lib ${nccl_root}/lib64)
  if(NOT BITSHARD_NCCL_LIB)
    message(FATAL_ERROR "libnccl.so.2 not found beside ${BITSHARD_NCCL_INCLUDE}: name it with -DBITSHARD_NCCL_LIB=")
  endif()
  add_library(bitshard_nccl INTERFACE)
  target_link_libraries(bitshard_nccl INTERFACE bitshard_nccl_headers ${BITSHARD_NCCL_LIB})
endif()
