(ns clojars.web-test
  (:require [clojars.web :as web]
            [clojure.string :as string]
            [clojure.test :refer [deftest is testing]]
            [ring.mock.request :as mock])
  (:import [java.io File]))

(defn- new-app []
  (web/handler {:version "1.2.3"}))

(defn- get-body [app uri]
  (:body (app (mock/request :get uri))))

(deftest front-page-names-the-version
  (is (string/includes? (get-body (new-app) "/") "<h1>Clojars 1.2.3</h1>")))

(deftest version-is-plain-text
  (let [response ((new-app) (mock/request :get "/version"))]
    (is (= "1.2.3" (:body response)))
    (is (= "text/plain; charset=utf-8" (get-in response [:headers "Content-Type"])))))

(deftest slow-needs-a-number
  (is (= 404 (:status ((new-app) (mock/request :get "/slow?ms=soon")))))
  (is (= "answered after 1 ms" (get-body (new-app) "/slow?ms=1"))))

(deftest uploads-are-counted-by-id
  (let [app (new-app)]
    (is (= "{}" (get-body app "/uploads")))
    (doseq [[method uri] [[:put "/upload/a.jar"] [:put "/upload/a.jar"] [:post "/upload/b.jar"]
                          [:post "/upload"]]]
      (is (= "5" (:body (app (mock/body (mock/request method uri) "hello"))))))
    (is (= "{\"-\": 1, \"a.jar\": 2, \"b.jar\": 1}" (get-body app "/uploads")))))

(deftest form-bodies-are-uploads-too
  (let [form (mock/body (mock/request :post "/upload/form") {:a "b"})]
    (is (= "3" (:body ((new-app) form))))))

(deftest uploads-are-logged
  (let [log (File/createTempFile "uploads" ".log")
        app (web/handler {:version "1.2.3" :upload-log (.getPath log)})]
    (try
      (app (mock/body (mock/request :put "/upload/a.jar") "hello"))
      (app (mock/body (mock/request :post "/upload") "hi"))
      (is (= "PUT a.jar 5\nPOST - 2\n" (slurp log)))
      (finally
        (.delete log)))))

(deftest unknown-pages-are-not-found
  (testing "no route"
    (is (= 404 (:status ((new-app) (mock/request :get "/nowhere"))))))
  (testing "an id that would break the log's lines"
    (is (= 404 (:status ((new-app) (mock/request :put "/upload/a%20b")))))))
