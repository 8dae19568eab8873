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
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT ${component}
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT ${component}
    INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
  install(EXPORT AFT_${component} FILE AFT_${component}.cmake NAMESPACE AFT:: DESTINATION ${AFT_CMAKE_DIR}
          COMPONENT ${component})
endfunction()

# The Python package installs the components torch and common alone.
set(excluded "")
aft_install_component(ops aft_ops aft_compile)
if(AFT_PROGRAMS)
  aft_install_component(runtime aft_runtime aft_config aft_image aft_io)
  install(FILES cmake/FindAftOpenBLAS.cmake DESTINATION ${AFT_CMAKE_DIR})
  install(TARGETS aft RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
else()
  list(APPEND excluded REGEX "/(config|io|runtime|runtime\\.h)$" EXCLUDE)
endif()
if(AFT_TORCH)
  aft_install_component(torch aft_torch)
  install(FILES ${AFT_TORCH_STAMP} DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT torch)
  install(FILES cmake/FindAftTorch.cmake DESTINATION ${AFT_CMAKE_DIR} COMPONENT torch)
  if(AFT_PROGRAMS)
    install(TARGETS aft-train RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  endif()
else()
  list(APPEND excluded PATTERN torch.h EXCLUDE)
endif()
install(DIRECTORY include/aft DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT common ${excluded})

configure_package_config_file(cmake/AFTConfig.cmake.in ${PROJECT_BINARY_DIR}/cmake/AFTConfig.cmake
                              INSTALL_DESTINATION ${AFT_CMAKE_DIR})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/cmake/AFTConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/cmake/AFTConfig.cmake ${PROJECT_BINARY_DIR}/cmake/AFTConfigVersion.cmake
        DESTINATION ${AFT_CMAKE_DIR} COMPONENT common)
