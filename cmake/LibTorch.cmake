# Target bitshard_torch: LibTorch's headers and CPU libraries, from a LibTorch folder or a torch wheel. Included by the
# build and, installed, by bitshardConfig.cmake.
#
# TorchConfig.cmake is fatal without a complete CUDA toolkit, even for a CPU build, so the libraries and headers are
# imported directly. torch_cpu and c10 only: linking all of libtorch costs 230 MB of RSS.

# bitshard_find_libtorch(<fault> <folder> <python>): makes the target from <folder>, which holds include/ and lib/, or,
# where that is empty, from the torch package of the interpreter <python>. <fault> is set to what is wrong, or to nothing;
# BITSHARD_TORCH_ROOT to the folder and BITSHARD_TORCH_VERSION to its version.
function(bitshard_find_libtorch fault root python)
  if(NOT root)
    execute_process(COMMAND ${python} -c
        "import importlib.util as u, os; print(os.path.dirname(u.find_spec('torch').origin))"
      OUTPUT_VARIABLE root OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE result)
    if(result)
      set(${fault} "torch not found by ${python}" PARENT_SCOPE)
      return()
    endif()
  endif()
  set(version_file include/torch/headeronly/version.h)
  foreach(file ${version_file} include/ATen/ATen.h lib/libtorch_cpu.so lib/libc10.so)
    if(NOT EXISTS ${root}/${file})
      set(${fault} "LibTorch: ${root}/${file} does not exist" PARENT_SCOPE)
      return()
    endif()
  endforeach()
  file(READ ${root}/${version_file} text)
  string(REGEX MATCH "TORCH_VERSION[ \\\n]+\"([0-9.]+)" version "${text}")
  add_library(bitshard_torch INTERFACE IMPORTED GLOBAL)
  target_include_directories(bitshard_torch INTERFACE ${root}/include ${root}/include/torch/csrc/api/include)
  target_link_libraries(bitshard_torch INTERFACE ${root}/lib/libtorch_cpu.so ${root}/lib/libc10.so)
  set(BITSHARD_TORCH_ROOT ${root} PARENT_SCOPE)
  set(BITSHARD_TORCH_VERSION ${CMAKE_MATCH_1} PARENT_SCOPE)
  set(${fault} "" PARENT_SCOPE)
endfunction()
