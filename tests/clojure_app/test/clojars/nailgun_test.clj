(ns clojars.nailgun-test
  (:require [clojars.nailgun :as nailgun]
            [clojure.test :refer [deftest is]])
  (:import [java.net ServerSocket Socket]))

(defn- send-to-nailgun
  "Sends text, shuts the sending side and returns all that comes back."
  [text]
  (with-open [^ServerSocket server (nailgun/start 0 "1.2.3")
              client (Socket. "127.0.0.1" (.getLocalPort server))]
    (.write (.getOutputStream client) (.getBytes ^String text))
    (.shutdownOutput client)
    (slurp (.getInputStream client))))

(deftest greets-with-its-version
  (is (= "nailgun 1.2.3\n" (send-to-nailgun ""))))

(deftest acknowledges-an-upload-on-a-half-closed-connection
  (is (= "nailgun 1.2.3\nreceived 5 bytes\n" (send-to-nailgun "hello"))))
