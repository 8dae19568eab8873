# What `cmake --install` lays down. One export set a component, so that find_package(AFT COMPONENTS ops) asks for
# nothing that only another component needs. AFT::ops and AFT::runtime need no LibTorch; AFT::torch finds the same one.

include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(AFT_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/AFT)

# aft_install_component(<component> <target>...): the first target becomes AFT::<component>
function(aft_install_component component target)
  # The headers that are installed are under include/, and no others.
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${component} INTERFACE_INCLUDE_DIRECTORIES
                                                                      $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>)
  install(
    TARGETS ${target} ${ARGN}
    EXPORT AFT_${component}
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
    INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
  install(EXPORT AFT_${component} FILE AFT_${component}.cmake NAMESPACE AFT:: DESTINATION ${AFT_CMAKE_DIR})
endfunction()

aft_install_component(ops aft_ops aft_compile)
aft_install_component(runtime aft_runtime aft_config aft_image aft_io)
install(FILES cmake/FindAftOpenBLAS.cmake DESTINATION ${AFT_CMAKE_DIR})
install(TARGETS aft RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
if(AFT_TORCH)
  aft_install_component(torch aft_torch)
  install(TARGETS aft-train RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  install(FILES cmake/FindAftTorch.cmake DESTINATION ${AFT_CMAKE_DIR})
  set(torch_headers "")
else()
  set(torch_headers PATTERN torch.h EXCLUDE)
endif()
install(DIRECTORY include/aft DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} ${torch_headers})

configure_package_config_file(cmake/AFTConfig.cmake.in ${PROJECT_BINARY_DIR}/cmake/AFTConfig.cmake
                              INSTALL_DESTINATION ${AFT_CMAKE_DIR})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/cmake/AFTConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/cmake/AFTConfig.cmake ${PROJECT_BINARY_DIR}/cmake/AFTConfigVersion.cmake
        DESTINATION ${AFT_CMAKE_DIR})
