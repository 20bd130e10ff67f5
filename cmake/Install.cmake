# `cmake --install`: the program with what it needs at run time (component `program`), and the libraries that do not need
# a device, their headers and the CMake package with which an outside project finds them (docs/libtorch.md). Headers keep their folders below include/bitshard, so an #include reads the same
# as in this tree.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

# Outside, bitshard::optim is what LibTorch programs link: the torch::optim classes and the engine. The engine alone,
# without torch, is bitshard::optim_engine.
add_library(bitshard_optim_for_libtorch INTERFACE)
target_link_libraries(bitshard_optim_for_libtorch INTERFACE bitshard_optim_torch bitshard_optim)
set_target_properties(bitshard_optim_for_libtorch PROPERTIES EXPORT_NAME optim)
set_target_properties(bitshard_optim PROPERTIES EXPORT_NAME optim_engine)

set(bitshard_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/bitshard)
foreach(name core quant paging comm comm_mpi optim_step optim optim_torch optim_for_libtorch)
  set(target bitshard_${name})
  get_target_property(export_name ${target} EXPORT_NAME)
  if(NOT export_name)
    set_target_properties(${target} PROPERTIES EXPORT_NAME ${name})
  endif()
  install(TARGETS ${target} EXPORT bitshardTargets
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
    INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/bitshard)
  get_target_property(headers ${target} BITSHARD_HEADERS)
  get_target_property(folder ${target} SOURCE_DIR)
  cmake_path(RELATIVE_PATH folder BASE_DIRECTORY ${CMAKE_SOURCE_DIR})
  foreach(header IN LISTS headers)
    if(header AND NOT header MATCHES "^internal/")
      cmake_path(GET header PARENT_PATH below)
      install(FILES ${CMAKE_SOURCE_DIR}/${folder}/${header}
              DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/bitshard/${folder}/${below})
    endif()
  endforeach()
endforeach()
install(EXPORT bitshardTargets NAMESPACE bitshard:: DESTINATION ${bitshard_package_dir})

configure_package_config_file(cmake/bitshardConfig.cmake.in ${CMAKE_BINARY_DIR}/generated/bitshardConfig.cmake
  INSTALL_DESTINATION ${bitshard_package_dir} NO_SET_AND_CHECK_MACRO)
# Before version 1 a minor version may change what callers see.
write_basic_package_version_file(${CMAKE_BINARY_DIR}/generated/bitshardConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/generated/bitshardConfig.cmake
              ${CMAKE_BINARY_DIR}/generated/bitshardConfigVersion.cmake
              cmake/LibTorch.cmake cmake/LibraryDependencies.cmake
        DESTINATION ${bitshard_package_dir})

# The program looks for share/bitshard/python from where it lies itself (trainer/text_python.cc), so that the prefix may
# be moved: bin and share are no options. What it links is found where the build found it; INSTALL_RPATH_USE_LINK_PATH
# leaves out what lies in this tree (.deps), so LibTorch and CUDA's libraries are named.
set(rpath ${BITSHARD_TORCH_LIB_DIR})
if(BITSHARD_CUDA)
  foreach(library CUDART CUBLAS NCCL)
    cmake_path(GET BITSHARD_${library}_LIB PARENT_PATH folder)
    list(APPEND rpath ${folder})
  endforeach()
endif()
set_target_properties(bitshard PROPERTIES INSTALL_RPATH "${rpath}" INSTALL_RPATH_USE_LINK_PATH ON)
install(TARGETS bitshard RUNTIME DESTINATION bin COMPONENT program)
install(PROGRAMS launch/mpirun.sh DESTINATION bin RENAME bitshard-mpirun COMPONENT program)
install(FILES trainer/__init__.py DESTINATION share/bitshard/python/trainer COMPONENT program)
install(DIRECTORY trainer/text DESTINATION share/bitshard/python/trainer COMPONENT program
        FILES_MATCHING PATTERN "*.py" PATTERN __pycache__ EXCLUDE)
install(DIRECTORY configs DESTINATION share/bitshard COMPONENT program)
install(FILES LICENSE README.md CHANGELOG.md DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT program)
install(DIRECTORY docs DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT program)
