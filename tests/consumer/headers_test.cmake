# include/ and the installed headers are the same files, and include no other of the project:
# cmake -DSOURCE=<include/> -DINSTALLED=<prefix/include> -DTORCH=<built with LibTorch?> -P this file.
cmake_minimum_required(VERSION 3.25)

file(GLOB_RECURSE expected RELATIVE ${SOURCE} ${SOURCE}/*)
if(NOT TORCH)
  list(REMOVE_ITEM expected aft/torch.h)
endif()
file(GLOB_RECURSE installed RELATIVE ${INSTALLED} ${INSTALLED}/*)
if(NOT installed OR NOT installed STREQUAL expected)
  set(missing ${expected})
  list(REMOVE_ITEM missing ${installed})
  list(REMOVE_ITEM installed ${expected})
  message(SEND_ERROR "include/ holds what is installed and nothing else: not installed: '${missing}'; installed from "
                     "elsewhere: '${installed}'. Headers for building only belong into src/")
endif()

foreach(header ${expected})
  file(STRINGS ${SOURCE}/${header} lines REGEX "^#include (\"|<aft/)")
  foreach(line ${lines})
    string(REGEX REPLACE "^#include .([^\">]*).*" "\\1" included "${line}")
    if(NOT included IN_LIST expected)
      message(SEND_ERROR "${header} is installed and includes \"${included}\", which is not")
    endif()
  endforeach()
endforeach()
