# Finds OpenBLAS and gives the imported target AftOpenBLAS::openblas.
#
# The static library of Debian's pthread build is taken by its own path. Shared, OpenBLAS starts its threads before any
# code of the program could keep it from that, and under a limit of memory it then never ends; and which build is loaded
# would be the alternatives system's choice at run time. The serial build will not do: its calls may not run side by side.
# Where that archive is missing, the OpenBLAS of pkg-config is linked as it comes.

include(FindPackageHandleStandardArgs)

find_library(AftOpenBLAS_LIBRARY NAMES libopenblas.a PATH_SUFFIXES openblas-pthread)
find_path(AftOpenBLAS_INCLUDE_DIR NAMES cblas.h PATH_SUFFIXES openblas-pthread openblas)
if(NOT AftOpenBLAS_LIBRARY MATCHES "/openblas-pthread/" OR NOT AftOpenBLAS_INCLUDE_DIR)
  find_package(PkgConfig QUIET)
  pkg_check_modules(AftOpenBLAS_SHARED QUIET IMPORTED_TARGET openblas)
endif()
if(AftOpenBLAS_SHARED_FOUND)
  find_package_handle_standard_args(AftOpenBLAS REQUIRED_VARS AftOpenBLAS_SHARED_LINK_LIBRARIES)
else()
  find_package_handle_standard_args(AftOpenBLAS REQUIRED_VARS AftOpenBLAS_LIBRARY AftOpenBLAS_INCLUDE_DIR)
endif()

if(AftOpenBLAS_FOUND AND NOT TARGET AftOpenBLAS::openblas)
  if(AftOpenBLAS_SHARED_FOUND)
    add_library(AftOpenBLAS::openblas INTERFACE IMPORTED)
    target_link_libraries(AftOpenBLAS::openblas INTERFACE PkgConfig::AftOpenBLAS_SHARED)
  else()
    add_library(AftOpenBLAS::openblas STATIC IMPORTED)
    set_target_properties(
      AftOpenBLAS::openblas
      PROPERTIES IMPORTED_LOCATION "${AftOpenBLAS_LIBRARY}"
                 INTERFACE_INCLUDE_DIRECTORIES "${AftOpenBLAS_INCLUDE_DIR}"
                 INTERFACE_LINK_LIBRARIES "m;pthread")
  endif()
endif()
